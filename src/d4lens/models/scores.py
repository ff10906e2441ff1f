"""How well probabilities tell the classes apart: AUC, accuracy, recall, calibration, each under weights of the images.

AUC is the Mann-Whitney statistic, ties counting one half (Hanley & McNeil 1982), of the one-vs-rest probability; the macro
AUC is the plain mean over the classes. The expected calibration error is that of Guo et al. 2017 (eq. 3): 15 equal-width
bins (0, 1/15], ... of the top class's probability. Brier's score (Brier 1950) is the squared distance of the probabilities
from the true class's 1, summed over the classes, and the negative log-likelihood -ln of its probability: both proper, so
that no distortion of the probabilities improves them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One metric of a classification, wherever it is computed, shown or compared.

    Attributes
    ----------
    title : str
        Its name in a document.
    tolerance : float
        Largest difference between the tables of two machines.
    begun : float
        The same for an arm that has only begun to learn.
    """

    title: str
    tolerance: float
    begun: float


TABLE = {
    "auc_macro": Metric("AUC, macro", 0.03, 0.15),
    **{f"auc_{name}": Metric(f"AUC, {name}", 0.03, 0.15) for name in CLASSES},
    "accuracy": Metric("accuracy", 0.05, 1.0),
    **{f"recall_{name}": Metric(f"recall, {name}", 0.12, 1.0) for name in CLASSES},
    "ece": Metric("expected calibration error", 0.06, 1.0),
    "brier": Metric("Brier score", 0.08, 1.0),
    "nll": Metric("negative log-likelihood", 0.15, 2.0),
}
"""Every metric by name, in the tables' order."""
METRICS = tuple(TABLE)
ECE_BINS = 15


def softmax(logits: ArrayLike) -> Array:
    """Turn logits into probabilities in float64, which keeps confident images apart that float32 would tie.

    Parameters
    ----------
    logits : array_like
        (n, C).

    Returns
    -------
    numpy.ndarray
        (n, C) float64; each row sums to 1.
    """
    logits = np.asarray(logits, dtype=np.float64)
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponential / exponential.sum(axis=1, keepdims=True))


def score(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """Compute every metric of METRICS, without intervals.

    Parameters
    ----------
    labels : array_like
        (n,) class indices.
    probabilities : array_like
        (n, C), rows summing to 1.

    Returns
    -------
    dict of float
        By metric.

    Raises
    ------
    D4LensError
        For a class without an image, a probability that is not finite, or shapes that disagree.
    """
    labels, probabilities = checked(labels, probabilities)
    return {name: float(value[0]) for name, value in weighted(labels, probabilities, np.ones((1, len(labels)))).items()}


def checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], Array]:
    """Return labels and probabilities as arrays that can be scored.

    Parameters
    ----------
    labels : array_like
        (n,) indices into CLASSES.
    probabilities : array_like
        (n, C), in the order of CLASSES.

    Returns
    -------
    labels : numpy.ndarray
        (n,) int64.
    probabilities : numpy.ndarray
        (n, C) float64.

    Raises
    ------
    D4LensError
        If the shapes do not fit, a label is out of range, a class is missing, or a probability is not finite.
    """
    labels = np.asarray(labels, dtype=np.int64)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if labels.ndim != 1 or probabilities.shape != (len(labels), len(CLASSES)):
        raise D4LensError(
            f"labels of shape {labels.shape} need probabilities of shape ({len(labels)}, {len(CLASSES)}), "
            f"not {probabilities.shape}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise D4LensError(f"labels must lie in 0..{len(CLASSES) - 1}, not in {labels.min()}..{labels.max()}")
    empty = [name for index, name in enumerate(CLASSES) if not (labels == index).any()]
    if empty:
        raise D4LensError(f"the images to score hold none of class {', '.join(empty)}: its AUC is undefined; add some")
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(broken):
        raise D4LensError(
            f"{len(broken)} predictions are not finite, the first for image {broken[0]}: train the network anew"
        )
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-4):
        raise D4LensError("predictions must be probabilities whose rows sum to 1: apply softmax to logits first")
    return labels, probabilities


def weighted(
    labels: NDArray[np.int64], probabilities: Array, weights: Array, metrics: tuple[str, ...] = METRICS
) -> dict[str, Array]:
    """Compute metrics under weights of the images.

    The sums of AUC, accuracy and recall are of integers, hence exact, where the weights are integers.

    Parameters
    ----------
    labels : ndarray
        (n,) class indices.
    probabilities : ndarray
        (n, C).
    weights : ndarray
        (B, n), each row one weighting.
    metrics : tuple of str
        Names of METRICS.

    Returns
    -------
    dict of ndarray
        (B,) by metric.
    """
    result: dict[str, Array] = {}
    auc = [name for name in metrics if name.startswith("auc_")]
    wanted = [index for index, name in enumerate(CLASSES) if "auc_macro" in auc or f"auc_{name}" in auc]
    for index in wanted:
        result[f"auc_{CLASSES[index]}"] = _auc(probabilities[:, index], labels == index, weights)
    if "auc_macro" in auc:
        result["auc_macro"] = np.mean([result[f"auc_{name}"] for name in CLASSES], axis=0)
    if len(auc) < len(metrics):
        right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
        total = weights.sum(axis=1)
        result["accuracy"] = weights @ right / total
        for index, name in enumerate(CLASSES):
            of_class = (labels == index).astype(np.float64)
            result[f"recall_{name}"] = (weights @ (right * of_class)) / (weights @ of_class)
        confidence = probabilities.max(axis=1)
        bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
        gap = np.zeros((len(labels), ECE_BINS))
        gap[np.arange(len(labels)), bins] = right - confidence
        result["ece"] = np.abs(weights @ gap).sum(axis=1) / total
        distance = np.square(probabilities - np.eye(len(CLASSES))[labels]).sum(axis=1)
        # a probability that underflows to zero counts as the smallest there is
        surprise = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).tiny))
        result["brier"], result["nll"] = weights @ distance / total, weights @ surprise / total
    return {name: result[name] for name in metrics}


def _auc(score: Array, positive: NDArray[np.bool_], weights: Array) -> Array:
    """Mann-Whitney AUC (B,) of one score under each row of weights (B, n); tied scores count one half."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    weights = weights[:, order]
    of_positive = weights * positive[order]
    of_negative = weights - of_positive
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    if len(starts) < len(ranked):
        of_positive = np.add.reduceat(of_positive, starts, axis=1)
        of_negative = np.add.reduceat(of_negative, starts, axis=1)
    below = np.cumsum(of_negative, axis=1)
    below -= of_negative / 2
    won = np.einsum("bn,bn->b", of_positive, below)
    return np.asarray(won / (of_positive.sum(axis=1) * of_negative.sum(axis=1)))
