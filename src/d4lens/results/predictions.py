"""The table of predictions that an evaluation leaves, and its scores: one row an image and view, plain and with TTA."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from d4lens.classes import CLASSES, VIEWS
from d4lens.errors import D4LensError
from d4lens.files import atomic_path
from d4lens.models import scores
from d4lens.results import metrics

LOGITS = [f"logit_{name}" for name in CLASSES]
PROBABILITIES = [f"p_{name}" for name in CLASSES]
COLUMNS = ["path", "label", "tta", *LOGITS, *PROBABILITIES]


def tabulate(paths: list[str], labels: ArrayLike, logits: dict[str, ArrayLike]) -> pd.DataFrame:
    """Make the table of predictions of all images, for each of VIEWS in turn.

    Parameters
    ----------
    paths : list of str
        Names of the n images.
    labels : array_like
        True classes, (n,), indices into CLASSES.
    logits : dict of str to array_like
        By view, (n, C).

    Returns
    -------
    pandas.DataFrame
        COLUMNS; logits float32, probabilities float64.
    """
    parts = []
    for view in VIEWS:
        values = np.asarray(logits[view], dtype=np.float32)
        part = pd.DataFrame({"path": paths, "label": np.asarray(labels, dtype=np.int64), "tta": view == "tta"})
        part[LOGITS] = values
        part[PROBABILITIES] = scores.softmax(values)
        parts.append(part[COLUMNS])
    return pd.concat(parts, ignore_index=True)


def write(path: str | Path, table: pd.DataFrame) -> None:
    """Write the table as parquet; equal tables give equal bytes."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def read(path: str | Path) -> pd.DataFrame:
    """Read a table written by `write`.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    pandas.DataFrame
        Columns COLUMNS.

    Raises
    ------
    D4LensError
        If it is missing or damaged.
    """
    try:
        return pd.read_parquet(path, columns=COLUMNS)
    except (OSError, ValueError, KeyError) as error:
        raise D4LensError(f"{path} is missing or damaged ({type(error).__name__}); run evaluate again") from None


def of_view(table: pd.DataFrame, view: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Return one view of a table of predictions.

    Parameters
    ----------
    table : pandas.DataFrame
        As `tabulate` makes it.
    view : str
        One of VIEWS.

    Returns
    -------
    tuple
        Paths (n), labels (n,) and probabilities (n, C).
    """
    part = table[table["tta"] == (view == "tta")]
    return part["path"].tolist(), part["label"].to_numpy(np.int64), part[PROBABILITIES].to_numpy(np.float64)


def score(table: pd.DataFrame, n_resamples: int, seed: int) -> dict[str, Any]:
    """Measure the metrics with intervals by view, as `metrics.with_intervals`; both views meet the same resamples."""
    return {view: metrics.with_intervals(*of_view(table, view)[1:], n_resamples, seed) for view in VIEWS}


def flat(scored: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Name each metric of `score` by one key, the same for every arm.

    Parameters
    ----------
    scored : Mapping
        By view, {metric: {"value", "low", "high"}}.

    Returns
    -------
    dict of str to float
        `test_auc_macro` and so on, the mean of eight views, with `_low` and `_high` for the ends of the interval; those of
        one view end in `_one_view`.
    """
    found = {}
    for view, end in (("tta", ""), ("plain", "_one_view")):
        for name, measured in scored[view].items():
            for key, value in (("", measured["value"]), ("_low", measured["low"]), ("_high", measured["high"])):
                found[f"test_{name}{key}{end}"] = float(value)
    return found


def seconds(train_minutes: float, images_per_second: Mapping[str, float], n_images: int) -> float:
    """Add up what a training and its evaluation took, from the numbers that timing.json keeps; `n_images` were tested."""
    return 60 * train_minutes + sum(n_images / speed for speed in images_per_second.values())


def compare(tables: Mapping[tuple[str, int], pd.DataFrame], n_resamples: int, seed: int) -> list[dict[str, Any]]:
    """Compare the macro AUC with TTA of every pair of models.

    Parameters
    ----------
    tables : Mapping of (str, int) to pandas.DataFrame
        Predictions by (model, seed); a model's seeds are averaged.
    n_resamples, seed : int
        Bootstrap resamples and their seed.

    Returns
    -------
    list of dict
        {"a", "b", "metric", "difference", "low", "high", "p_value", "p_holm"} for each pair.

    Raises
    ------
    D4LensError
        Unless all predict the same images in the same order.
    """
    trainings: dict[str, list[NDArray[np.float64]]] = {}
    first: tuple[list[str], NDArray[np.int64]] | None = None
    for (model, training), table in tables.items():
        paths, labels, probabilities = of_view(table, "tta")
        first = first or (paths, labels)
        if paths != first[0] or not np.array_equal(labels, first[1]):
            raise D4LensError(f"{model} with seed {training} was evaluated on other images; run evaluate again")
        trainings.setdefault(model, []).append(probabilities)
    if first is None:
        return []
    stacks = {model: np.stack(several) for model, several in trainings.items()}
    found = metrics.compare_all(first[1], stacks, "auc_macro", n_resamples, seed)
    corrected = metrics.holm([difference.p_value for difference in found.values()])
    return [
        {"a": a, "b": b, **asdict(difference), "p_holm": p_holm}
        for ((a, b), difference), p_holm in zip(found.items(), corrected, strict=True)
    ]
