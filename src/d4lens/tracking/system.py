"""What the machine was doing, under the names of MLflow's own system metrics but without its thread and its waiting."""

import os
import sys


def watching() -> bool:
    """Tell whether to sample: unless the environment says MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false.

    Returns
    -------
    bool
        Whether to sample.
    """
    return os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0")


def sample() -> dict[str, float]:
    """Sample the machine.

    Returns
    -------
    dict of str to float
        Processor load in percent since the last call (none at the first), memory in MB, and that of a GPU in use; empty
        without psutil.
    """
    try:
        import psutil
    except ImportError:
        return {}
    found = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": psutil.virtual_memory().used / 1e6,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    torch = sys.modules.get("torch")  # looking must not be what imports it
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["system/gpu_0_memory_usage_megabytes"] = torch.cuda.max_memory_reserved() / 1e6
    return found
