"""Classification metrics, their bootstrap intervals and paired comparisons.

A bootstrap resample is a row of integer weights, one per image: how often the image was drawn. Every metric here takes
such weights, so one resample is never copied out and a whole chunk of resamples is one array operation.

Choices, made once for the project:

- Resampling is stratified by class: as many draws of each class as the test split holds. The class sizes are fixed by
  the design of the data set, and no resample can lose a class, which would leave its AUC undefined.
- An accuracy or a recall is a share of images: its interval is Wilson's (1927), which has a width at 0 and 1 too. That of
  an AUC is normal on the logit scale, the resamples' standard deviation carried there by the slope (Pepe 2003),
  so that it never ends beyond 1; of classes that are separated perfectly it is Wilson's for as many images as the
  smallest class has. The others are percentile intervals (Efron & Tibshirani 1993, chapter 13).
- A single training's are over images alone. A comparison of arms, and what a study measures on several trainings, draws
  training seeds as well as images, each anew in every resample (Owen 2007); where both arms have the same seeds, the same
  ones. Means over S drawn seeds vary less than means over S trainings by (S - 1) / S, which is made up for. One seed
  cannot be resampled: its interval is over images.
- AUC is the Mann-Whitney statistic, ties counting one half (Hanley & McNeil 1982), of the one-vs-rest probability;
  the macro AUC is the plain mean over the classes.
- The expected calibration error is that of Guo et al. 2017 (eq. 3): 15 equal-width bins (0, 1/15], ... of the top
  class's probability, the bins' |accuracy - confidence| averaged with the bins' share of images. Noise
  in the bins only ever adds to it, and in a resample once more: its interval leans upwards, and for a small test split
  it may lie above the value.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import scipy.special
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.models.scores import METRICS, Array, checked, score, weighted

LEVEL = 0.95
DECIMALS = 6
ROC_POINTS = 101
# Resamples handled at once: the working arrays (chunk x images) then stay in the processor's cache.
_CHUNK = 64


@dataclass(frozen=True)
class Difference:
    """Two arms compared on the same images.

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
    seeds : int
        Trainings of the arm that has fewer; with one, the resamples are of images alone.
    """

    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    seeds: int


def with_intervals(
    labels: ArrayLike, probabilities: ArrayLike, n_resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Measure every metric with its 95 % interval: Wilson's of a share, else from stratified resamples.

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
        As `score`, or for less than one resample.
    """
    labels, probabilities = checked(labels, probabilities)
    value = score(labels, probabilities)
    drawn = _resampled(labels, [probabilities], n_resamples, seed)
    result = {}
    sizes = np.bincount(labels, minlength=len(CLASSES))
    of_class = {f"recall_{name}": int(size) for name, size in zip(CLASSES, sizes)}
    for name in METRICS:
        if name == "accuracy" or name in of_class:
            n = of_class.get(name, len(labels))
            low, high = wilson(round(value[name] * n), n)
        elif name.startswith("auc_"):
            low, high = auc_interval(value[name], drawn[name][0], int(sizes.min()))
        else:
            low, high = interval(drawn[name][0])
        result[name] = {
            "value": round(value[name], DECIMALS),
            "low": round(low, DECIMALS),
            "high": round(high, DECIMALS),
        }
    return result


def auc_interval(value: float, drawn: Array, n: int) -> tuple[float, float]:
    """Bound an AUC by its resamples: a normal interval of its log odds, Wilson's at 0 and 1.

    Parameters
    ----------
    value : float
        The AUC.
    drawn : numpy.ndarray
        (n_resamples,) AUCs of the resamples.
    n : int
        Size of the smallest class.

    Returns
    -------
    tuple of float
        Lower and upper end.
    """
    if value in (0.0, 1.0):  # as is every resample
        return wilson(n * int(value), n)
    slope = 1 / (value * (1 - value))
    reach = scipy.special.ndtri((1 + LEVEL) / 2) * slope * drawn.std(ddof=min(1, len(drawn) - 1))
    low, high = scipy.special.expit(scipy.special.logit(value) + np.array([-reach, reach]))
    return float(low), float(high)


def compare_all(
    labels: ArrayLike,
    predictions: Mapping[str, Mapping[int, ArrayLike]],
    pairs: Iterable[tuple[str, str]],
    metric: str,
    n_resamples: int,
    seed: int,
) -> dict[tuple[str, str], Difference]:
    """Compare pairs of arms on the same images by a paired bootstrap over seeds and images.

    All arms are scored on the same resamples, so that what makes an image hard for both cancels. The p-value is twice the
    smaller share of resamples on either side of zero, each share counted with the observed one added ((b + 1) / (B + 1),
    Davison & Hinkley 1997, eq. 4.11), at most 1. It is that of the pair alone: `holm` corrects a family.

    Parameters
    ----------
    labels : array_like
        True classes, (n,), indices into CLASSES.
    predictions : Mapping of str to Mapping
        By arm and training seed, probabilities (n, C). The metric is averaged over the seeds.
    pairs : iterable of (str, str)
        Arms to compare, the first less the second.
    metric : str
        One of METRICS.
    n_resamples : int
        Bootstrap resamples, at least 1.
    seed : int
        Of the resamples.

    Returns
    -------
    dict of (str, str) to Difference
        By pair, in their order.

    Raises
    ------
    D4LensError
        As `score`, for another metric, or for an arm without a training.
    """
    if metric not in METRICS:
        raise D4LensError(f"there is no metric '{metric}'; choose one of {', '.join(METRICS)}")
    values: dict[str, Array] = {}
    observed: dict[str, float] = {}
    for name, given in predictions.items():
        trainings = [checked(labels, one)[1] for _, one in sorted(given.items())]
        if not trainings:
            raise D4LensError(f"a comparison needs the predictions of at least one training of {name}")
        truth = np.asarray(labels, dtype=np.int64)
        ones = np.ones((1, len(truth)))
        observed[name] = float(np.mean([weighted(truth, one, ones, (metric,))[metric] for one in trainings]))
        values[name] = over_trainings(
            _resampled(truth, trainings, n_resamples, seed, (metric,))[metric], (seed, *given)
        )
    result = {}
    for a, b in pairs:
        difference = values[a] - values[b]
        low, high = interval(difference)
        p_value = round(two_sided(difference), DECIMALS)
        seeds = min(len(predictions[a]), len(predictions[b]))
        result[a, b] = Difference(metric, round(observed[a] - observed[b], DECIMALS), low, high, p_value, seeds)
    return result


def over_trainings(drawn: Array, entropy: Sequence[int]) -> Array:
    """Average over as many trainings as there are, drawn anew in each resample.

    Equal entropy draws equal ones. The deviations from the mean over all are scaled to the variance of a mean of S.

    Parameters
    ----------
    drawn : numpy.ndarray
        A quantity of each of S trainings in each of B resamples of images, (S, B).
    entropy : Sequence of int
        The seed of the draws and the trainings' own seeds.

    Returns
    -------
    numpy.ndarray
        (B,).
    """
    n, resamples = drawn.shape
    centre = drawn.mean(axis=0)
    if n == 1:
        return np.asarray(centre)
    chosen = np.random.default_rng(sorted(entropy)).integers(0, n, (n, resamples))
    mean = np.take_along_axis(drawn, chosen, axis=0).mean(axis=0)
    return np.asarray(centre + (n / (n - 1)) ** 0.5 * (mean - centre))


def drawn_means(values: ArrayLike, n_resamples: int, seed: int) -> Array:
    """Average a quantity over trainings and images in resamples of both.

    Parameters
    ----------
    values : array_like
        Of S trainings on n images, (S, n); NaN where a training has none. Each training counts alike.
    n_resamples : int
        Bootstrap resamples, at least 1.
    seed : int
        Of the resamples. Equal seeds draw equal images and trainings, so that a difference is a paired one.

    Returns
    -------
    numpy.ndarray
        (n_resamples,); NaN where a training is left without images.
    """
    stack = np.atleast_2d(np.asarray(values, np.float64))
    weights, there = image_weights(stack.shape[1], n_resamples, seed), np.isfinite(stack)
    total, count = weights @ np.where(there, stack, 0.0).T, weights @ there.T.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return over_trainings((total / count).T, (seed, *range(len(stack))))


@lru_cache(maxsize=8)
def image_weights(n: int, n_resamples: int, seed: int) -> Array:
    """Count how often each of n images is drawn in each resample.

    Parameters
    ----------
    n : int
        Number of images.
    n_resamples : int
        Number of resamples.
    seed : int
        Of the draws.

    Returns
    -------
    numpy.ndarray
        (n_resamples, n).
    """
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples).astype(np.float64)


def interval(drawn: Array, level: float = LEVEL) -> tuple[float, float]:
    """Take the percentile interval of resampled values. What is NaN among them is left out.

    Parameters
    ----------
    drawn : numpy.ndarray
        The values.
    level : float
        Share of the values within.

    Returns
    -------
    tuple of float
        Lower and upper end; NaN without a finite value.
    """
    tail = (1 - level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return round(float(low), DECIMALS), round(float(high), DECIMALS)


def mean_over_trainings(
    values: ArrayLike, n_resamples: int, seed: int, share: bool = False
) -> tuple[float, float, float]:
    """Average a quantity over trainings and images, with its 95 % interval over both.

    Parameters
    ----------
    values : array_like
        Of S trainings on n images, (S, n).
    n_resamples : int
        Bootstrap resamples, at least 1.
    seed : int
        Of the resamples.
    share : bool
        Whether the values are 0 and 1. The interval of a single training, or of a share of 0 or 1, is then Wilson's.

    Returns
    -------
    tuple of float
        Mean, lower and upper end.
    """
    stack = np.atleast_2d(np.asarray(values, np.float64))
    value, n = float(stack.mean()), stack.shape[1]
    if share and (len(stack) == 1 or value in (0.0, 1.0)):
        return value, *wilson(round(value * n), n)
    return value, *interval(drawn_means(stack, n_resamples, seed))


def auc_over_trainings(
    labels: ArrayLike, trainings: Sequence[ArrayLike], n_resamples: int, seed: int
) -> tuple[float, float, float]:
    """Measure the macro AUC of several trainings of one arm, with its 95 % interval over trainings and images.

    Parameters
    ----------
    labels : array_like
        True classes, (n,), indices into CLASSES.
    trainings : sequence of array_like
        Probabilities (n, C) of each.
    n_resamples : int
        Bootstrap resamples, at least 1.
    seed : int
        Of the resamples.

    Returns
    -------
    tuple of float
        Mean over the trainings, lower and upper end; of one training those of `with_intervals`.

    Raises
    ------
    D4LensError
        As `scores`, or for less than one resample.
    """
    several = [checked(labels, one)[1] for one in trainings]
    truth = np.asarray(labels, dtype=np.int64)
    ones = np.ones((1, len(truth)))
    value = float(np.mean([weighted(truth, one, ones, ("auc_macro",))["auc_macro"] for one in several]))
    drawn = _resampled(truth, several, n_resamples, seed, ("auc_macro",))["auc_macro"]
    smallest = int(np.bincount(truth, minlength=len(CLASSES)).min())
    low, high = auc_interval(value, over_trainings(drawn, (seed, *range(len(several)))), smallest)
    return round(value, DECIMALS), round(low, DECIMALS), round(high, DECIMALS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of a family of tests for their number (Holm 1979).

    Parameters
    ----------
    p_values : sequence of float
        Of the family.

    Returns
    -------
    list of float
        In the same order, rounded to 6 decimals.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = round(largest, DECIMALS)
    return corrected


def two_sided(drawn: Array) -> float:
    """Return the two-sided p-value of a bootstrapped difference from zero.

    Parameters
    ----------
    drawn : ndarray
        Its value in each resample.

    Returns
    -------
    float
        At least 2 over the number of resamples and one.
    """
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(drawn) + 1))


def roc_curves(labels: ArrayLike, probabilities: ArrayLike) -> pd.DataFrame:
    """Draw up one-vs-rest ROC curves on equal steps of the false positive rate.

    Tied scores are straight pieces. The steps keep plots of large test splits small; the AUC is never computed from them.

    Parameters
    ----------
    labels : array_like
        True classes, (n,), indices into CLASSES.
    probabilities : array_like
        (n, C).

    Returns
    -------
    pandas.DataFrame
        Columns class, fpr, and tpr, the highest true positive rate reached at that fpr.

    Raises
    ------
    D4LensError
        As `score`.
    """
    labels, probabilities = checked(labels, probabilities)
    grid = np.linspace(0, 1, ROC_POINTS)
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
