import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# At a desk new examples each time, to find faults; in CI the same ones each time, to judge the change.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def real_samples() -> Path:
    """Folder of genuine images ({no,sphere,vort}/N.npy); read by tests only, never trained or tuned on."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("D4LENS_REAL_SAMPLES", root.parent / "shared" / "deeplense_samples"))
    if not folder.is_dir():
        pytest.skip(f"no genuine images at {folder}; set D4LENS_REAL_SAMPLES to a folder that holds them")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
