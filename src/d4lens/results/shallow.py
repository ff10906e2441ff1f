"""Baselines without a network: what the numbers of the smooth fit alone tell of the class.

A network that reads the fit must beat what a forest reads off it: the parameters of the smooth lens, in which no class should
show, its chi2, and the largest value of the significance map.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from d4lens.data import arrays
from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.results import metrics

INPUTS = {
    "parameters of the fit": (*FIT_COLUMNS,),
    "chi2 of the fit": ("chi2",),
    "parameters and chi2": (*FIT_COLUMNS, "chi2"),
    "largest significance": ("significance",),
}
"""Columns that each baseline reads."""
_TREES, _LEAF = 300, 20


def measure(
    arrays_folder: str | Path, macrofit_folder: str | Path, n_resamples: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Train a random forest (Breiman 2001) on each of INPUTS and score it on the test split.

    Parameters
    ----------
    arrays_folder, macrofit_folder : str or Path
        Outs of the stages `preprocess` and `macrofit`.
    n_resamples, seed : int
        Bootstrap resamples; the seed is the forest's too.

    Returns
    -------
    dict
        By name, the metrics as `metrics.with_intervals`.
    """
    train, test = (_read(Path(arrays_folder), Path(macrofit_folder), split) for split in ("train", "test"))
    found: dict[str, Any] = {}
    for name, columns in INPUTS.items():
        # No depth and no leaf is chosen by what they score: 20 images a leaf give probabilities in steps of a twentieth.
        forest = RandomForestClassifier(_TREES, min_samples_leaf=_LEAF, random_state=seed, n_jobs=-1)
        forest.fit(train[0][list(columns)].to_numpy(), train[1])
        probabilities = forest.predict_proba(test[0][list(columns)].to_numpy())
        found[name] = metrics.with_intervals(test[1], probabilities, n_resamples, seed)
    return found


def _read(arrays_folder: Path, folder: Path, split: str) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    table = pd.read_csv(folder / f"{split}_fit.csv", float_precision="round_trip")
    significance = np.load(folder / f"{split}_significance.npy", mmap_mode="r", allow_pickle=False)
    table["significance"] = [float(image.max()) for image in significance]
    return table, arrays.load_split(arrays_folder, split).labels
