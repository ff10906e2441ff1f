"""A split fitted by several processes: each fits its rows, the first one joins their files into one process's bytes."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from d4lens.files import atomic_path
from d4lens.macrofit.smooth_lens import SmoothLensModel
from d4lens.macrofit.split import MAPS, fit_split
from d4lens.parallel import Ranks, together


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
    **options: Any,
) -> pd.DataFrame:
    """`fit_split` by all of `ranks` at once, with the same files and the same table in each process.

    A process's part waits beside `folder` until all are done; after an interruption as many processes go on with the
    parts that are not finished.
    """
    folder = Path(folder)
    if ranks.world == 1:
        return fit_split(counts, paths, model, folder, split, source=source, batch_size=batch_size, **options)
    # Whole batches: an image meets the same others as in one process.
    shares = ranks.shares(len(counts), batch_size if len(counts) >= batch_size * ranks.world else 1)
    rows = shares[ranks.rank]
    if rows.start < rows.stop:
        made = f"{source} {rows.start}:{rows.stop}"
        fit_split(
            counts[rows], paths[rows], model, ranks.part(folder), split, source=made, batch_size=batch_size, **options
        )
    ranks.wait()
    if ranks.leads:
        parts = [part for part, rows in zip(ranks.parts(folder), shares, strict=True) if rows.start < rows.stop]
        _join(parts, folder, split, counts.shape)
    ranks.wait()
    return pd.read_csv(folder / f"{split}_fit.csv", dtype={"path": str}, float_precision="round_trip")


def remove_parts(ranks: Ranks, folder: str | Path) -> None:
    """Remove what the processes left beside `folder`, once every split is joined."""
    if ranks.world > 1 and ranks.leads:
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
