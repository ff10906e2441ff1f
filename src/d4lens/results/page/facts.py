"""Where a result comes from: the data's fingerprint, the code's commit, the machine and the packages."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from d4lens.data import arrays
from d4lens.files import sha256

PACKAGES = ("torch", "lightning", "escnn", "timm", "numpy", "scipy", "pandas", "dvc", "mlflow")


def of_data(folder: Path) -> dict[str, str]:
    """Collect what identifies the images of a profile.

    Parameters
    ----------
    folder : Path
        The arrays' folder.

    Returns
    -------
    dict of str to str
        Hashes, grid, numbers by split and class.
    """
    facts = arrays.load_facts(folder)
    found = {
        "archive, SHA-256": str(facts["archive_sha256"]),
        "manifest of the images, SHA-256": sha256(folder / arrays.MANIFEST),
        "images": f"{facts['n_pixels']} × {facts['n_pixels']} pixels of {facts['pixel_scale']:g} arcsec, {facts['units']}",
        "PSF, standard deviation": f"{facts['psf_sigma']:g} arcsec",
        "sky": f"{facts['sky']:g} counts a pixel",
    }
    for split, by_class in facts["images"].items():
        found[f"split {split}"] = ", ".join(f"{name} {count:,}" for name, count in by_class.items())
    return found


def of_machine() -> dict[str, str]:
    """Collect the facts of the machine that writes the page.

    Returns
    -------
    dict of str to str
        Processor, memory, accelerator, system and packages.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores for this process",
        "memory": f"{memory:.0f} GiB",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }
    return found | {name: _version(name) for name in PACKAGES}


def commit(folder: Path) -> str:
    """Return the commit of a project.

    Parameters
    ----------
    folder : Path
        The project.

    Returns
    -------
    str
        The commit, with "changed since" if files differ; "unknown" without git.
    """
    if not (head := _git(folder, "rev-parse", "HEAD")):
        return "unknown"
    return head + (", changed since" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
