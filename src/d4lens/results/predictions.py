"""The table of predictions that an evaluation leaves, and its scores: one row an image and view, plain and with TTA."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
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
from d4lens.table_files import PROBABILITIES

LOGITS = [f"logit_{name}" for name in CLASSES]
PREDICTION_COLUMNS = ["path", "label", "tta", *LOGITS, *PROBABILITIES]


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
        parts.append(part[PREDICTION_COLUMNS])
    return pd.concat(parts, ignore_index=True)


def write_predictions(path: str | Path, table: pd.DataFrame) -> None:
    """Write the table as parquet; equal tables give equal bytes.

    Parameters
    ----------
    path : str or Path
        The file.
    table : pandas.DataFrame
        The predictions.
    """
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read a table written by `write_predictions`.

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
        return pd.read_parquet(path, columns=PREDICTION_COLUMNS)
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


def score_predictions(table: pd.DataFrame, n_resamples: int, seed: int) -> dict[str, Any]:
    """Measure the metrics with intervals by view; both views meet the same resamples.

    Parameters
    ----------
    table : pandas.DataFrame
        The predictions.
    n_resamples : int
        Of the bootstrap.
    seed : int
        Of the resamples.

    Returns
    -------
    dict
        For each of VIEWS what `metrics.with_intervals` returns.
    """
    return {view: metrics.with_intervals(*of_view(table, view)[1:], n_resamples, seed) for view in VIEWS}


def flat(scored: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Name each metric of `score_predictions` by one key, the same for every arm.

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
    """Add up what a training and its evaluation took, from the numbers that timing.json keeps.

    Parameters
    ----------
    train_minutes : float
        The training.
    images_per_second : mapping of str to float
        The prediction's speed by view.
    n_images : int
        How many were tested.

    Returns
    -------
    float
        Seconds.
    """
    return 60 * train_minutes + sum(n_images / speed for speed in images_per_second.values())


def compare(
    tables: Mapping[tuple[str, int], pd.DataFrame],
    n_resamples: int,
    seed: int,
    contrasts: Sequence[tuple[str, str]] = (),
) -> list[dict[str, Any]]:
    """Compare the macro AUC with TTA of the fixed contrasts, and of every other pair of arms for orientation.

    Parameters
    ----------
    tables : Mapping of (str, int) to pandas.DataFrame
        Predictions by (arm, seed); an arm's seeds are averaged.
    n_resamples, seed : int
        Bootstrap resamples and their seed. At least 40 a contrast are taken: the least p-value times the number of contrasts
        then stays below 0.05.
    contrasts : sequence of (str, str)
        Pairs fixed before anything was measured, the first less the second. Holm's correction goes over these alone.

    Returns
    -------
    list of dict
        {"a", "b", "metric", "difference", "low", "high", "seeds"} for each pair, the contrasts first; these with "p_value" and
        "p_holm" too.

    Raises
    ------
    D4LensError
        Unless all predict the same images in the same order, or for a contrast of an arm that is not there.
    """
    trainings: dict[str, dict[int, NDArray[np.float64]]] = {}
    first: tuple[list[str], NDArray[np.int64]] | None = None
    for (arm, training), table in tables.items():
        paths, labels, probabilities = of_view(table, "tta")
        first = first or (paths, labels)
        if paths != first[0] or not np.array_equal(labels, first[1]):
            raise D4LensError(f"{arm} with seed {training} was evaluated on other images; run evaluate again")
        trainings.setdefault(arm, {})[training] = probabilities
    if first is None:
        return []
    unknown = [arm for pair in contrasts for arm in pair if arm not in trainings]
    if unknown:
        raise D4LensError(f"a contrast names {unknown[0]}, which is not among {', '.join(trainings)}; mend `contrasts`")
    others = [pair for pair in combinations(trainings, 2) if pair not in contrasts and pair[::-1] not in contrasts]
    n_resamples = max(n_resamples, 40 * len(contrasts))
    found = metrics.compare_all(first[1], trainings, [*contrasts, *others], "auc_macro", n_resamples, seed)
    corrected = metrics.holm([found[pair].p_value for pair in contrasts])
    rows: list[dict[str, Any]] = [{"a": a, "b": b, **asdict(difference)} for (a, b), difference in found.items()]
    for row in rows[len(contrasts) :]:
        del row["p_value"]
    return [row | {"p_holm": p} for row, p in zip(rows, corrected)] + rows[len(contrasts) :]
