"""The folder every later stage reads: one memory-mapped array a split, with labels, names and, if simulated, the truth.

    train.npy, select.npy, test.npy   (n, N, N) uint16 photon counts; float32 from 0 to 1 where the archive has no counts
    manifest.csv                      one row an image, columns MANIFEST_COLUMNS, in the arrays' order
    observation.json                  the Observation after binning, and what the arrays hold
    truth.csv, subhalos.csv           the archive's tables, where it has them

`train` and `select` are carved from the archive's train, `test` is its val.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from d4lens.data.truth import SUBHALO_COLUMNS, Truth
from d4lens.errors import D4LensError
from d4lens.observation import Observation

SPLITS = ("train", "select", "test")
MANIFEST_COLUMNS = ("split", "row", "path", "label", "class", "n_levels", "k_min", "sha256")
MANIFEST = "manifest.csv"
OBSERVATION_FILE = "observation.json"


@dataclass(frozen=True)
class Split:
    """One split of an arrays folder.

    Attributes
    ----------
    counts : memory map, (n, N, N)
        Read-only; uint16 counts, or float32 from 0 to 1.
    labels : ndarray, (n,) int64
        Indices into CLASSES.
    paths : list of str
        The images' paths below the archive's `dataset/`.
    """

    counts: NDArray[Any]
    labels: NDArray[np.int64]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)


def load_split(folder: str | Path, split: str) -> Split:
    """Return a split of an arrays folder; the images stay on disk.

    Parameters
    ----------
    folder : str or Path
        The folder.
    split : str
        One of SPLITS.

    Returns
    -------
    Split

    Raises
    ------
    D4LensError
        If it is missing or disagrees with the manifest.
    """
    if split not in SPLITS:
        raise D4LensError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
    rows = _manifest(folder, split)
    path = Path(folder) / f"{split}.npy"
    try:
        counts = np.lib.format.open_memmap(path, mode="r")  # maps no pickle
    except (OSError, ValueError, EOFError):
        raise D4LensError(f"{path} is missing or damaged; run the preprocess stage again") from None
    if counts.ndim != 3 or len(counts) != len(rows):
        raise D4LensError(
            f"{path} has shape {counts.shape} where {MANIFEST} lists {len(rows)} images; preprocess again"
        )
    return Split(counts, rows["label"].to_numpy(np.int64), rows["path"].tolist())


def load_facts(folder: str | Path) -> dict[str, Any]:
    """Return observation.json.

    Parameters
    ----------
    folder : str or Path
        The arrays folder.

    Returns
    -------
    dict
        The Observation's fields and `units` ("counts" or "normalised"), `bin`, `native` (the Observation before binning),
        `archive_sha256` and `images` (number by split and class).

    Raises
    ------
    D4LensError
        If the file is missing or damaged.
    """
    path = Path(folder) / OBSERVATION_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise D4LensError(f"{path} is missing or damaged; run the preprocess stage") from None


def load_observation(folder: str | Path) -> Observation:
    """Return the observation of the arrays' images: grid, pixel scale, PSF and sky after binning.

    Parameters
    ----------
    folder : str or Path
        The arrays' folder.

    Returns
    -------
    Observation
        In arcsec and counts per pixel.

    Raises
    ------
    D4LensError
        If the arrays' facts are incomplete.
    """
    facts = load_facts(folder)
    try:
        return Observation.from_dict({field.name: facts[field.name] for field in fields(Observation)})
    except KeyError as error:
        raise D4LensError(
            f"{Path(folder) / OBSERVATION_FILE} has no {error.args[0]!r}; run the preprocess stage again"
        ) from None


def load_truth(folder: str | Path, split: str) -> Truth | None:
    """Return the truth of a split's images in the order of its rows.

    Parameters
    ----------
    folder : str or Path
        The arrays folder.
    split : str
        One of SPLITS.

    Returns
    -------
    Truth or None
        None if the archive had no truth.

    Raises
    ------
    D4LensError
        If the manifest is missing or damaged.
    """
    path = Path(folder) / "truth.csv"
    if not path.is_file():
        return None
    paths = _manifest(folder, split)["path"]
    images = pd.read_csv(path, float_precision="round_trip").set_index("path").loc[paths].reset_index()
    path = Path(folder) / "subhalos.csv"
    if not path.is_file():
        return Truth(images, pd.DataFrame(columns=list(SUBHALO_COLUMNS)))
    subhalos = pd.read_csv(path, float_precision="round_trip")
    rows = subhalos["path"].map({name: row for row, name in enumerate(paths)}).dropna().sort_values(kind="stable")
    return Truth(images, subhalos.loc[rows.index].reset_index(drop=True))


class RowWriter:
    """Writes an .npy of known shape (n, N, N) image by image, so that memory stays that of one image.

    Parameters
    ----------
    path : Path
        The file.
    n : int
        Number of images.
    side : int
        Pixels a side N.
    dtype : data-type
        Of the array.
    """

    def __init__(self, path: Path, n: int, side: int, dtype: Any) -> None:
        self.path, self.n, self.side, self.dtype, self.written = path, n, side, np.dtype(dtype), 0

    def __enter__(self) -> "RowWriter":
        self._file = open(self.path, "wb")
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.n, self.side, self.side)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None and self.written != self.n:
            raise RuntimeError(f"{self.path} was given {self.written} of its {self.n} images")

    def add(self, image: NDArray[Any]) -> None:
        """Append one image.

        Parameters
        ----------
        image : numpy.ndarray
            (N, N) of the array's type.

        Raises
        ------
        ValueError
            If its shape or type is another.
        """
        if image.shape != (self.side, self.side) or image.dtype != self.dtype:
            raise ValueError(f"{image.shape} of {image.dtype} in an array of {self.side} pixels of {self.dtype}")
        self._file.write(np.ascontiguousarray(image).data)
        self.written += 1


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Make a folder whole or not at all.

    On success its files are flushed and it takes the place of `folder`. On failure it is removed and `folder` is as it was.

    Parameters
    ----------
    folder : str or Path
        The folder to make or replace.

    Yields
    ------
    Path
        A new temporary sibling to write into.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
    retired = folder.with_name(f"{temporary.name}.old")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        if folder.exists():
            os.replace(folder, retired)
        try:
            os.replace(temporary, folder)
        except OSError:
            if retired.exists():
                os.replace(retired, folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def _manifest(folder: str | Path, split: str) -> pd.DataFrame:
    path = Path(folder) / MANIFEST
    try:
        manifest = pd.read_csv(path, dtype={"path": str, "split": str})
        rows = manifest[manifest["split"] == split]
        if list(rows["row"]) != list(range(len(rows))):
            raise ValueError
        return rows
    except (OSError, ValueError, KeyError):
        raise D4LensError(f"{path} is missing or damaged; run the preprocess stage") from None
