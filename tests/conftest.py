import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright

# At a desk new examples each time, to find faults; in CI the same ones each time, to judge the change.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

# A shell without job control starts what runs in its background, such as `make test &`, with SIGINT ignored; so would be
# every process that a test starts and stops by Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_samples() -> Path:
    """Folder of genuine images ({no,sphere,vort}/N.npy); read by tests only, never trained or tuned on."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("D4LENS_REAL_SAMPLES", root.parent / "shared" / "deeplense_samples"))
    if not folder.is_dir():
        pytest.skip(f"no genuine images at {folder}; set D4LENS_REAL_SAMPLES to a folder that holds them")
    return folder


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds; the four minutes are for a fault, not a measurement."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    return wait


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a screen and without a word to the network.

    No longer than a module: while it is open, nothing else in the process can run an event loop.
    """
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium; install it: apt-get install chromium")
    flags = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync", "disable-dev-shm-usage"]
    quiet = ["disable-background-networking", "disable-component-update"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=[f"--{flag}" for flag in (*flags, *quiet)], timeout=120_000
        )
        yield started
        started.close()
