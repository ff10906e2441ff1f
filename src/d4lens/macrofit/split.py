"""A whole split fitted to files: in pieces, so that memory stays flat and an interruption costs one piece."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from d4lens import imports
from d4lens.data.truth import Truth
from d4lens.errors import D4LensError
from d4lens.files import atomic_path, write_json
from d4lens.macrofit.columns import MAPS
from d4lens.macrofit.fitting import fit_smooth_lens
from d4lens.macrofit.marginal import MarginalFit, fit_marginal, open_model
from d4lens.macrofit.presets import pseudo_counts
from d4lens.macrofit.significance import significance_maps
from d4lens.macrofit.smooth_lens import SmoothLensModel
from d4lens.macrofit.threads import in_threads
from d4lens.macrofit.world import AUTO, MARGINAL, SPECIALIST, foreign
from d4lens.observation import Observation
from d4lens.parallel import Ranks, together
from d4lens.progress import Meter

PIECE = 512  # images between two looks at the disk
_LARGEST = float(np.finfo(np.float16).max)


def fit_split(
    counts: NDArray[Any],
    paths: Sequence[str],
    model: SmoothLensModel,
    folder: str | Path,
    split: str,
    *,
    source: str,
    units: str = "counts",
    smooth_lens: str = SPECIALIST,
    observations: Sequence[Observation] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Fit every image of a split and write the maps and the table of the fits.

    The maps are MAPS (`{split}_residual.npy`, `{split}_significance.npy`; float16), the table is `{split}_fit.csv`; each
    appears whole. Finished pieces wait in the sibling `{folder}.partial`. A later call with the same source, model, options
    and code goes on after them; with any other it starts afresh.

    Parameters
    ----------
    counts : numpy.ndarray
        (n, N, N) photons per pixel, or from 0 to 1.
    paths : sequence of str
        The images' names.
    model : SmoothLensModel
        What is fitted.
    folder : str or Path
        Where the files go.
    split : str
        The split's name.
    source : str
        Which images these are: a hash of their manifest.
    units : str
        "counts" or "normalised".
    smooth_lens : str
        One of `world.MODELS`.
    observations : sequence of Observation, optional
        What is known of each image before binning, for MARGINAL; by default the model's observation.
    **options
        Of `fit_smooth_lens`.

    Returns
    -------
    pandas.DataFrame
        The table.

    Raises
    ------
    D4LensError
        If `observations` are given and `smooth_lens` is not MARGINAL.
    """
    folder = Path(folder)
    partial = folder.with_name(f"{folder.name}.partial") / split
    if observations is not None and smooth_lens != MARGINAL:
        raise D4LensError(f"images of a PSF and a sky of their own need macrofit.model {MARGINAL}, not {smooth_lens}")
    about = {"smooth_lens": smooth_lens, "observations": [each.to_dict() for each in observations or ()], **options}
    fingerprint = _fingerprint(model, source, units, len(counts), about)
    maps = _open(partial, fingerprint, counts.shape)
    tables = []
    with Meter(len(counts), f"fit {split}") as meter:
        for first in range(0, len(counts), PIECE):
            rows = slice(first, min(first + PIECE, len(counts)))
            done = partial / f"{first:08d}.csv"
            if not done.is_file():
                pixels = torch.from_numpy(np.ascontiguousarray(counts[rows]).astype(np.float32))
                pixels = pseudo_counts(pixels) if units == "normalised" else pixels
                own = observations[rows] if observations is not None else None
                found, fitted = _fitted(pixels, model, smooth_lens, options, own)
                for name, file in maps.items():
                    file[rows] = found[name].clamp(-_LARGEST, _LARGEST).numpy()
                    file.flush()
                with atomic_path(done) as temporary:
                    fitted(paths[rows]).to_csv(temporary, index=False)
            tables.append(pd.read_csv(done, dtype={"path": str}, float_precision="round_trip"))
            meter.to(rows.stop)
    table = pd.concat(tables, ignore_index=True)
    del maps
    with atomic_path(folder / f"{split}_fit.csv") as temporary:
        table.to_csv(temporary, index=False)
    # Last, since the maps are what a call after an interruption here goes on from.
    for name in MAPS:
        os.replace(partial / f"{name}.npy", folder / f"{split}_{name}.npy")
    shutil.rmtree(partial)
    if not any(partial.parent.iterdir()):
        partial.parent.rmdir()
    return table


def own_observations(truth: Truth | None, native: Observation) -> list[Observation] | None:
    """Return how each image was observed, where each has a PSF and a sky of its own.

    Parameters
    ----------
    truth : Truth, optional
        What is in the images, where it is known.
    native : Observation
        What all images share.

    Returns
    -------
    list of Observation or None
        With the width of each PSF as far as it is known: off by `psf_error`. None where all images have the same.
    """
    if truth is None or "psf_error" not in truth.images:
        return None
    widths = truth.images["image_psf_sigma"] * (1 + truth.images["psf_error"])
    return [
        replace(native, psf_sigma=width, sky=sky) for width, sky in zip(widths, truth.images["image_sky"], strict=True)
    ]


def _fitted(
    pixels: Tensor,
    model: SmoothLensModel,
    smooth_lens: str,
    options: dict[str, Any],
    observations: Sequence[Observation] | None,
) -> tuple[dict[str, Tensor], Callable[[Sequence[str]], pd.DataFrame]]:
    """Fit one piece: its MAPS (B, N, N), and what makes its table of the paths."""
    if smooth_lens == MARGINAL:
        if observations is None:
            result = fit_marginal(pixels, _opened(model))
        else:

            def alone(i: int) -> MarginalFit:
                return fit_marginal(pixels[i : i + 1], open_model(observations[i], model.binning), threads=1)

            result = MarginalFit.joined(in_threads(alone, range(len(pixels)), torch.get_num_threads()))
        return {"residual": result.residual, "significance": result.significance}, result.table
    first = fit_smooth_lens(pixels, model, **options)
    found = {"residual": first.residual, "significance": significance_maps(pixels, first.parameters, model)}
    others = torch.nonzero(foreign(pixels, first, model))[:, 0] if smooth_lens == AUTO else torch.empty(0)
    if not len(others):
        return found, first.table
    second = fit_marginal(pixels[others], _opened(model))
    for name in MAPS:
        found[name][others] = getattr(second, name)
    rows = others.tolist()

    def table(paths: Sequence[str]) -> pd.DataFrame:
        whole = first.table(paths)
        again = second.table([paths[i] for i in rows])
        again.index = whole.index[rows]
        whole.loc[again.index] = again
        return whole

    return found, table


def _opened(model: SmoothLensModel) -> SmoothLensModel:
    return open_model(model.observation, model.binning, {"sky": model.constants["sky"]})


def _open(
    partial: Path, fingerprint: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, np.memmap[Any, np.dtype[Any]]]:
    """Return the maps so far, (n, N, N) float16 on disk; empty files where there are none of this fingerprint."""
    paths, note = {name: partial / f"{name}.npy" for name in MAPS}, partial / "fingerprint.json"
    try:
        if json.loads(note.read_text(encoding="utf-8")) == fingerprint:
            found = {name: np.lib.format.open_memmap(path, mode="r+") for name, path in paths.items()}
            if all(file.shape == shape and file.dtype == np.float16 for file in found.values()):
                return found
    except (OSError, ValueError):
        pass
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    created = {
        name: np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape) for name, path in paths.items()
    }
    write_json(note, fingerprint)
    return created


def _fingerprint(model: SmoothLensModel, source: str, units: str, n: int, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": json.loads(json.dumps(model.to_dict())),
        "source": source,
        "units": units,
        "n": n,
        "options": options,
        "code": imports.digest("macrofit.split"),
    }


@together()
def fit_shared(
    ranks: Ranks,
    counts: NDArray[Any],
    paths: Sequence[str],
    model: SmoothLensModel,
    folder: str | Path,
    split: str,
    *,
    source: str,
    batch_size: int = 64,
    observations: Sequence[Observation] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Do as `fit_split` by several processes at once, with the same files and the same table in each.

    A process's part waits beside `folder` until all are done; after an interruption as many processes go on with the
    parts that are not finished.

    Parameters
    ----------
    ranks : Ranks
        The processes.
    counts, paths, model, folder, split, source
        As for `fit_split`.
    batch_size : int
        As for `fit_smooth_lens`.
    observations : sequence of Observation, optional
        As for `fit_split`.
    **options
        As for `fit_split`.

    Returns
    -------
    pandas.DataFrame
        The table.
    """
    folder = Path(folder)
    if ranks.world == 1:
        options |= {"batch_size": batch_size, "observations": observations}
        return fit_split(counts, paths, model, folder, split, source=source, **options)
    # Whole batches: an image meets the same others as in one process.
    shares = ranks.shares(len(counts), batch_size if len(counts) >= batch_size * ranks.world else 1)
    rows = shares[ranks.rank]
    if rows.start < rows.stop:
        made = f"{source} {rows.start}:{rows.stop}"
        options |= {"batch_size": batch_size, "observations": observations[rows] if observations else None}
        fit_split(counts[rows], paths[rows], model, ranks.part(folder), split, source=made, **options)
    ranks.wait()
    if ranks.is_main:
        parts = [part for part, rows in zip(ranks.parts(folder), shares, strict=True) if rows.start < rows.stop]
        _join(parts, folder, split, counts.shape)
    ranks.wait()
    return pd.read_csv(folder / f"{split}_fit.csv", dtype={"path": str}, float_precision="round_trip")


def remove_parts(ranks: Ranks, folder: str | Path) -> None:
    """Remove what the processes left beside `folder`, once every split is joined.

    Parameters
    ----------
    ranks : Ranks
        The processes.
    folder : str or Path
        As for `fit_shared`.
    """
    if ranks.world > 1 and ranks.is_main:
        for part in ranks.parts(Path(folder)):
            shutil.rmtree(part, ignore_errors=True)


def _join(parts: Sequence[Path], folder: Path, split: str, shape: tuple[int, ...]) -> None:
    for name in MAPS:
        with atomic_path(folder / f"{split}_{name}.npy") as temporary:
            whole = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            first = 0
            for part in parts:
                values = np.load(part / f"{split}_{name}.npy", mmap_mode="r", allow_pickle=False)
                whole[first : first + len(values)] = values
                first += len(values)
            del whole
    tables = [
        pd.read_csv(part / f"{split}_fit.csv", dtype={"path": str}, float_precision="round_trip") for part in parts
    ]
    with atomic_path(folder / f"{split}_fit.csv") as temporary:
        pd.concat(tables, ignore_index=True).to_csv(temporary, index=False)
