"""Batches straight from the memory maps, in an order that (seed, epoch) alone decides."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from d4lens.data import arrays
from d4lens.data.truth import Truth
from d4lens.errors import D4LensError
from d4lens.lensing import d4
from d4lens.macrofit.columns import FIT_COLUMNS, MAPS
from d4lens.models.batch import LensBatch
from d4lens.observation import Observation

_SUBSET = 2**31 + 1  # no epoch: the seed of a smaller training set


@dataclass
class Lenses(Dataset):  # type: ignore[type-arg]
    """One split of a data set; `dataset[rows]` is the `LensBatch` of these rows.

    Attributes
    ----------
    counts : ndarray
        (n, N, N) photon counts.
    labels : ndarray
        (n,) class indices.
    residual, significance : ndarray, optional
        (n, N, N) maps of the smooth fit in standard deviations.
    fit : ndarray, optional
        (n, 7) parameters of the smooth lens, FIT_COLUMNS.
    kappa : ndarray, optional
        (n, N, N) true convergence, of the substructure or of the whole lens.
    rows : ndarray, optional
        (n,) rows of the split's arrays, where these are not all of them.
    """

    counts: NDArray[Any]
    labels: NDArray[np.int64]
    residual: NDArray[Any] | None = None
    significance: NDArray[Any] | None = None
    fit: NDArray[np.float32] | None = None
    kappa: NDArray[np.float16] | None = None
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int, seed: int) -> "Lenses":
        """Draw images by a seed and copy them into memory. Of one seed the larger set contains the smaller.

        Parameters
        ----------
        count : int
            How many.
        seed : int
            At least 0.

        Returns
        -------
        Lenses
            These images, in the order of the split.

        Raises
        ------
        D4LensError
            If there are fewer images.
        """
        if count > len(self):
            raise D4LensError(f"train.limit is {count} but the split train holds {len(self)} images; lower it")
        return self.only(np.sort(np.random.default_rng([seed, _SUBSET]).permutation(len(self))[:count]))

    def only(self, rows: NDArray[np.int64]) -> "Lenses":
        """Copy some rows into memory. They keep the numbers of their rows in the split's arrays.

        Parameters
        ----------
        rows : ndarray
            (m,) rows of this object.

        Returns
        -------
        Lenses
            These images, in this order.
        """
        parts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rows"}
        kept = rows if self.rows is None else self.rows[rows]
        return replace(self, rows=kept, **{name: part[rows] for name, part in parts.items() if part is not None})

    def __getitem__(self, rows: Sequence[int]) -> LensBatch:
        index = np.asarray(rows)
        others = {name: getattr(self, name) for name in (*MAPS, "fit", "kappa")}
        return LensBatch(
            torch.from_numpy(self.counts[index].astype(np.float32)),
            label=torch.from_numpy(self.labels[index]),
            index=torch.from_numpy(index if self.rows is None else self.rows[index]),
            # halves are cast ten times as fast by torch as by numpy
            **{name: torch.from_numpy(v[index]).float() for name, v in others.items() if v is not None},
        )


def load_lenses(
    arrays_folder: str | Path,
    macrofit_folder: str | Path | None,
    split: str,
    needs: Sequence[str],
    observation: Observation,
    *,
    presets: Sequence[str] | None = None,
    convergence: Callable[[Truth, Observation], Tensor] | None = None,
) -> Lenses:
    """Load a split with what a network needs.

    Parameters
    ----------
    arrays_folder : str or Path
        Out of the stage `preprocess`.
    macrofit_folder : str or Path, optional
        Out of the stage `macrofit`; None where nothing of the fit is needed.
    split : str
        Name of the split.
    needs : sequence of str
        Entries of `LensBatch`.
    observation : Observation
        Pixels of the images.
    presets : sequence of str, optional
        Only images drawn from these presets. Without a truth all images count: they were not simulated.
    convergence : callable, optional
        What computes the true convergence to add, of `simulator.substructure`, where the truth is known.

    Returns
    -------
    Lenses

    Raises
    ------
    D4LensError
        Where the fit is needed and missing, or is not of these images, or where no image was drawn from `presets`.
    """
    images = arrays.load_split(arrays_folder, split)
    lenses = Lenses(images.counts, images.labels)
    if set(needs) & {*MAPS, "fit"}:
        if macrofit_folder is None:
            raise D4LensError("this network reads the residual of the smooth-lens fit; run the macrofit stage first")
        maps, lenses.fit = _fit(Path(macrofit_folder), split, images)
        lenses.residual, lenses.significance = (maps[name] if name in needs else None for name in MAPS)
    truth = arrays.load_truth(arrays_folder, split) if convergence or presets is not None else None
    if truth is not None and convergence is not None:
        lenses.kappa = _in_pieces(convergence, truth, observation)
    if truth is not None and presets is not None:
        rows = np.flatnonzero(truth.images["preset"].isin(presets))
        if not len(rows):
            raise D4LensError(f"no image of the split {split} was drawn from {', '.join(presets)}; mend train.presets")
        if len(rows) < len(lenses):
            lenses = lenses.only(rows)
    return lenses


def _fit(folder: Path, split: str, images: arrays.Split) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    try:
        maps = {name: np.load(folder / f"{split}_{name}.npy", mmap_mode="r", allow_pickle=False) for name in MAPS}
        table = pd.read_csv(folder / f"{split}_fit.csv", float_precision="round_trip")
        fit = table[list(FIT_COLUMNS)].to_numpy(np.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise D4LensError(
            f"the fit of split {split} in {folder} cannot be read ({reason}); run macrofit again"
        ) from None
    same = all(values.shape == images.counts.shape for values in maps.values())
    if not same or list(table["path"]) != images.paths:
        raise D4LensError(f"the fit of split {split} in {folder} is of other images; run the macrofit stage again")
    if not np.isfinite(fit).all():
        row = int(np.flatnonzero(~np.isfinite(fit).all(1))[0])
        raise D4LensError(
            f"{folder / f'{split}_fit.csv'} row {row} holds a value that is not finite; run macrofit again"
        )
    return maps, fit


def _in_pieces(
    convergence: Callable[[Truth, Observation], Tensor], truth: Truth, observation: Observation, chunk: int = 512
) -> NDArray[np.float16]:
    """Half precision and in pieces: the set at full size would fill the memory four times over."""
    kappa = np.empty((len(truth), observation.n_pixels, observation.n_pixels), np.float16)
    for start in range(0, len(truth), chunk):
        part = truth.rows(range(len(truth))[start : start + chunk])
        kappa[start : start + chunk] = convergence(part, observation).numpy()
    return kappa


class EpochBatches(Sampler[list[int]]):
    """Rows of each batch of one epoch, in an order that depends on (seed, epoch) and on nothing that ran before.

    Each of several processes takes every world-th row of a global batch. The last batch is filled up from its own rows,
    so that all processes make the same number of steps.

    Parameters
    ----------
    size : int
        Number of images.
    batch : int
        Images a batch and process.
    seed : int
        Of the order.
    first : int
        The epoch at which a resumed training begins; `set_epoch` counts from it.
    rank, world : int
        This process, and how many there are.
    """

    def __init__(self, size: int, batch: int, seed: int, first: int = 0, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch, self.seed, self.first, self.rank, self.world = size, batch, seed, first, rank, world
        self.epoch = first

    def set_epoch(self, epoch: int) -> None:
        """Take the order of epoch `first` + `epoch`; Lightning calls it.

        Parameters
        ----------
        epoch : int
            Epochs since `first`.
        """
        self.epoch = self.first + epoch

    def __len__(self) -> int:
        return -(-self.size // (self.batch * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        step = self.batch * self.world
        for start in range(0, self.size, step):
            rows = order[start : start + step]
            missing = -len(rows) % self.world
            yield np.resize(rows, len(rows) + missing)[self.rank :: self.world].tolist()


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Derive the seed of everything random within one epoch but the order of the images.

    Parameters
    ----------
    seed : int
        The training's.
    epoch : int
        From 0.
    rank : int
        The process's.

    Returns
    -------
    int
        Below 2^32.
    """
    return int(np.random.SeedSequence([seed, epoch, rank, 1]).generate_state(1)[0])


def augment(batch: LensBatch, elements: Tensor) -> LensBatch:
    """Turn each image of a batch, with all that belongs to it, by its own element of D4.

    Parameters
    ----------
    batch : LensBatch
        B images.
    elements : Tensor
        (B,) elements, 0 to 7.

    Returns
    -------
    LensBatch
        Sorted by element: the order of a batch means nothing, and slices are cheaper than a scatter.
    """
    parts = []
    for g in d4.ELEMENTS:
        rows = torch.nonzero(elements == g)[:, 0]
        if len(rows):
            parts.append(batch.rows(rows.to(batch.counts.device)).turned(g))
    return LensBatch.joined(parts)
