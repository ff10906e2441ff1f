"""Classification metrics, their bootstrap intervals and paired comparisons.

A bootstrap resample is a row of integer weights, one per image: how often the image was drawn. Every metric here takes
such weights, so one resample is never copied out and a whole chunk of resamples is one array operation.

Choices, made once for the project:

- Resampling is stratified by class: as many draws of each class as the test split holds. The class sizes are fixed by
  the design of the data set, and no resample can lose a class, which would leave its AUC undefined.
- Intervals are percentile intervals (Efron & Tibshirani 1993, chapter 13) over images; what another training seed
  would give is not in them and is reported beside them as the spread over seeds.
- AUC is the Mann-Whitney statistic, ties counting one half (Hanley & McNeil 1982), of the one-vs-rest probability;
  the macro AUC is the plain mean over the classes.
- The expected calibration error is that of Guo et al. 2017 (eq. 3): 15 equal-width bins (0, 1/15], ... of the top
  class's probability, the bins' |accuracy - confidence| averaged with the bins' share of images. Noise
  in the bins only ever adds to it, and in a resample once more: its interval leans upwards, and for a small test split
  it may lie above the value.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.models.scores import METRICS, Array, checked, scores, weighted

LEVEL = 0.95
DECIMALS = 6
# Resamples handled at once: the working arrays (chunk x images) then stay in the processor's cache.
_CHUNK = 64


@dataclass(frozen=True)
class Difference:
    """Two models compared on the same images.

    Attributes
    ----------
    metric : str
        One of METRICS.
    difference : float
        metric(a) - metric(b); for an error such as `ece` a negative one speaks for a.
    low, high : float
        Its 95 % percentile interval over resamples.
    p_value : float
        Two-sided bootstrap p-value of no difference.
    """

    metric: str
    difference: float
    low: float
    high: float
    p_value: float


def with_intervals(
    labels: ArrayLike, probabilities: ArrayLike, n_resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Measure every metric with its 95 % percentile interval over stratified resamples.

    `scipy.stats.bootstrap` has no strata: it draws over all images, and a resample could lose a class.

    Parameters
    ----------
    labels : array_like
        True classes, (n,), indices into CLASSES.
    probabilities : array_like
        (n, C).
    n_resamples : int
        Bootstrap resamples, at least 1.
    seed : int
        Of the resamples.

    Returns
    -------
    dict of str to dict
        {"value", "low", "high"} for each of METRICS, rounded to 6 decimals.

    Raises
    ------
    D4LensError
        As `scores`, or for less than one resample.
    """
    labels, probabilities = checked(labels, probabilities)
    value = scores(labels, probabilities)
    drawn = _resampled(labels, [probabilities], n_resamples, seed)
    result = {}
    for name in METRICS:
        low, high = _interval(drawn[name][0])
        result[name] = {"value": round(value[name], DECIMALS), "low": low, "high": high}
    return result


def compare_all(
    labels: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    metric: str,
    n_resamples: int,
    seed: int,
) -> dict[tuple[str, str], Difference]:
    """Compare every pair of models on the same images by a paired bootstrap.

    All models are scored on the same resamples, so that what makes an image hard for both cancels. The p-value is twice the
    smaller share of resamples on either side of zero, each share counted with the observed one added ((b + 1) / (B + 1),
    Davison & Hinkley 1997, eq. 4.11), at most 1. It is that of the pair alone: `holm` corrects a family.

    Parameters
    ----------
    labels : array_like
        True classes, (n,), indices into CLASSES.
    predictions : Mapping of str to array_like
        Probabilities by model: (n, C) of one training, or (seeds, n, C) of several, over which the metric is then averaged,
        in each resample anew.
    metric : str
        One of METRICS.
    n_resamples : int
        Bootstrap resamples, at least 1.
    seed : int
        Of the resamples.

    Returns
    -------
    dict of (str, str) to Difference
        Pairs (a, b) in the order of `predictions`.

    Raises
    ------
    D4LensError
        As `scores`, for another metric, or for a model without a training.
    """
    if metric not in METRICS:
        raise D4LensError(f"there is no metric '{metric}'; choose one of {', '.join(METRICS)}")
    values: dict[str, Array] = {}
    observed: dict[str, float] = {}
    for name, given in predictions.items():
        stack = np.asarray(given, dtype=np.float64)
        trainings = [checked(labels, one)[1] for one in (stack[None] if stack.ndim == 2 else stack)]
        if not trainings:
            raise D4LensError(f"a comparison needs the predictions of at least one training of {name}")
        truth = np.asarray(labels, dtype=np.int64)
        ones = np.ones((1, len(truth)))
        observed[name] = float(np.mean([weighted(truth, one, ones, (metric,))[metric] for one in trainings]))
        values[name] = _resampled(truth, trainings, n_resamples, seed, (metric,))[metric].mean(axis=0)
    result = {}
    for a, b in combinations(values, 2):
        difference = values[a] - values[b]
        tail = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
        low, high = _interval(difference)
        p_value = round(min(1.0, 2 * (tail + 1) / (n_resamples + 1)), DECIMALS)
        result[a, b] = Difference(metric, round(observed[a] - observed[b], DECIMALS), low, high, p_value)
    return result


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of a family of tests for their number (Holm 1979), rounded to 6 decimals."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = round(largest, DECIMALS)
    return corrected


def roc_curves(labels: ArrayLike, probabilities: ArrayLike, n_points: int = 201) -> pd.DataFrame:
    """Draw up one-vs-rest ROC curves on equal steps of the false positive rate.

    Tied scores are straight pieces. The steps keep plots of large test splits small; the AUC is never computed from them.

    Parameters
    ----------
    labels : array_like
        True classes, (n,), indices into CLASSES.
    probabilities : array_like
        (n, C).
    n_points : int
        Points a curve.

    Returns
    -------
    pandas.DataFrame
        Columns class, fpr, and tpr, the highest true positive rate reached at that fpr.

    Raises
    ------
    D4LensError
        As `scores`.
    """
    labels, probabilities = checked(labels, probabilities)
    grid = np.linspace(0, 1, n_points)
    frames = []
    for index, name in enumerate(CLASSES):
        positive = labels == index
        values, group = np.unique(-probabilities[:, index], return_inverse=True)
        true = np.cumsum(np.bincount(group, positive, len(values))) / positive.sum()
        false = np.cumsum(np.bincount(group, ~positive, len(values))) / (~positive).sum()
        # where the curve is vertical np.interp takes the upper end
        curve = np.interp(grid, np.r_[0.0, false], np.r_[0.0, true])
        frames.append(pd.DataFrame({"class": name, "fpr": grid.round(DECIMALS), "tpr": curve.round(DECIMALS)}))
    return pd.concat(frames, ignore_index=True)


def confusion(labels: ArrayLike, probabilities: ArrayLike) -> NDArray[np.int64]:
    """Count images by true and most probable class.

    Parameters
    ----------
    labels : array_like
        True classes, (n,), indices into CLASSES.
    probabilities : array_like
        (n, C).

    Returns
    -------
    numpy.ndarray
        (C, C): row the true class, column the most probable one.

    Raises
    ------
    D4LensError
        As `scores`.
    """
    labels, probabilities = checked(labels, probabilities)
    n = len(CLASSES)
    return np.bincount(labels * n + probabilities.argmax(axis=1), minlength=n * n).reshape(n, n)


def _interval(drawn: Array) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return round(float(low), DECIMALS), round(float(high), DECIMALS)


def _resample_weights(labels: NDArray[np.int64], n_resamples: int, seed: int) -> Iterator[Array]:
    """Stratified resamples as weights, in chunks (<= _CHUNK, n)."""
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == index) for index in range(len(CLASSES))]
    for start in range(0, n_resamples, _CHUNK):
        size = min(_CHUNK, n_resamples - start)
        row = np.arange(size)[:, None] * len(labels)
        weights = np.zeros(size * len(labels))
        for member in members:
            draws = member[generator.integers(0, len(member), (size, len(member)))]
            weights += np.bincount((row + draws).ravel(), minlength=len(weights))
        yield weights.reshape(size, len(labels))


def _resampled(
    labels: NDArray[np.int64], predictions: list[Array], n_resamples: int, seed: int, metrics: tuple[str, ...] = METRICS
) -> dict[str, Array]:
    """Each metric of each set of predictions in each resample: (len(predictions), n_resamples)."""
    if n_resamples < 1:
        raise D4LensError(f"a bootstrap needs at least 1 resample, not {n_resamples}")
    chunks: dict[str, list[Array]] = {name: [] for name in metrics}
    for weights in _resample_weights(labels, n_resamples, seed):
        drawn = [weighted(labels, probabilities, weights, metrics) for probabilities in predictions]
        for name in metrics:
            chunks[name].append(np.stack([one[name] for one in drawn]))
    return {name: np.concatenate(parts, axis=1) for name, parts in chunks.items()}


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Bound a share by its 95 % interval (Wilson 1927).

    Parameters
    ----------
    successes, n : int
        The share is `successes / n`.

    Returns
    -------
    tuple of float
        Lower and upper end; (0, 1) without trials.
    """
    if not n:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(LEVEL, "wilson")
    return float(interval.low), float(interval.high)
