import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from d4lens.classes import CLASSES
from d4lens.data.archive import zip_member

SKY = 10.0


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def photons(seed: int, n: int = 48) -> np.ndarray:
    """Counts (n, n) of a ring on a sky of 10."""
    x = np.arange(n) - (n - 1) / 2
    radius = np.hypot(x[:, None], 1.1 * x)
    ring = 300 * np.exp(-((radius - n / 5) ** 2) / (n / 16) ** 2)
    return np.random.default_rng(seed).poisson(ring + SKY)


def disguise(counts: np.ndarray) -> np.ndarray:
    """The published form: (1, n, n) float64 from 0 to 1."""
    return ((counts - counts.min()) / (counts.max() - counts.min()))[None]


def tree(n_train: int = 4, n_val: int = 2, n_pixels: int = 48) -> dict[str, bytes]:
    """Names and bytes of a small published tree, every image different."""
    files = {}
    for split, n in (("train", n_train), ("val", n_val)):
        for name in CLASSES:
            for number in range(1, n + 1):
                files[f"dataset/{split}/{name}/{number}.npy"] = npy(disguise(photons(len(files), n_pixels)))
    return files


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The makers above, for tests."""
    return SimpleNamespace(npy=npy, photons=photons, disguise=disguise, tree=tree, sky=SKY)


@pytest.fixture(scope="session")
def small_tree() -> dict[str, bytes]:
    return tree()


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    """Write files (a mapping or pairs) as a zip."""

    def write(files: dict[str, bytes] | Iterable[tuple[str, bytes]], name: str = "lenses.zip") -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as writer:
            for member, data in files.items() if isinstance(files, dict) else files:
                writer.writestr(zip_member(member), data)
        return path

    return write
