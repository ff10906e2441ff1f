"""`python -m d4lens.tracking`: the UI, with a page that compares an experiment's runs ready to open."""

import argparse
import json
import os
import sys
from pathlib import Path
from urllib.parse import quote

from d4lens.tracking import store
from d4lens.tracking.store import DATABASE, StoreError, uri
from d4lens.tracking.tracker import PARENT

BEST = "test_auc_macro"
"""The metric by which arms are put in order; `results.predictions.flat` names it."""


def compare_urls(folder: str | Path, address: str) -> dict[str, str]:
    """Find the pages of the UI that compare the trainings of each experiment.

    Parameters
    ----------
    folder : str or Path
        The project's folder.
    address : str
        Of the UI, such as "http://127.0.0.1:5000".

    Returns
    -------
    dict of str to str
        The page by experiment; only experiments with runs.

    Raises
    ------
    StoreError
        For a store that cannot be read.
    """
    place = Path(folder).resolve()
    if not (place / DATABASE).exists():
        return {}
    store.check_store(place, store.PATIENCE_SECONDS)
    client = store.client(place)
    result = {}
    for experiment in client.search_experiments():
        found = client.search_runs([experiment.experiment_id], max_results=100)
        parents = {run.data.tags.get(PARENT) for run in found}
        runs = [run.info.run_id for run in found if run.info.run_id not in parents]
        if runs:
            query = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment.experiment_id]))}"
            result[experiment.name] = f"{address}/#/compare-runs?{query}"
    return result


def list_urls(folder: str | Path, address: str) -> dict[str, str]:
    """Find the pages of the UI that list each experiment's runs, the best arm first.

    Parameters
    ----------
    folder, address
        As for `compare_urls`.

    Returns
    -------
    dict of str to str
        The page of each experiment by its name.
    """
    store.check_store(Path(folder).resolve(), store.PATIENCE_SECONDS)
    order = f"orderByKey={quote(f'metrics.`{BEST}`')}&orderByAsc=false"
    found = store.client(Path(folder).resolve()).search_experiments()
    return {one.name: f"{address}/#/experiments/{one.experiment_id}/runs?{order}" for one in found}


def main() -> None:
    """Print each experiment's links and serve the UI on 127.0.0.1 until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m d4lens.tracking", description=main.__doc__)
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--folder", type=Path, default=Path("."), help="the project's folder (default: here)")
    options = parser.parse_args()
    address = f"http://127.0.0.1:{options.port}"
    try:
        urls = compare_urls(options.folder, address)
        lists = list_urls(options.folder, address) if urls else {}
    except StoreError as error:
        sys.exit(f"track: {options.folder / DATABASE} cannot be read ({error}); close what holds it, or move it away")
    if not urls:
        sys.exit("track: no runs yet; train something first, e.g. make reproduce PROFILE=smoke")
    for name, url in urls.items():
        print(f"runs of {name}, best first: {lists[name]}\ncompared: {url}", flush=True)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # a second process, of no use here
    serve = ["-m", "mlflow", "ui", "--backend-store-uri", uri(options.folder), "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *serve, "--port", str(options.port), "--workers", "1"])
