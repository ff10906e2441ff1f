"""What the network adds to physics: its residual convergence against the true one, and the mass it finds in a rod."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from d4lens.macrofit import FIT_COLUMNS
from d4lens.models.batch import LensBatch

Array = NDArray[np.float64]
_TINY = 1e-6  # arcsec²: an estimate of no mass at all, in the logarithm


_KEPT = ("kappa", "significance", "label", "fit")


@dataclass(frozen=True)
class Maps:
    """What a network draws of n images, and their truth.

    Attributes
    ----------
    predicted, true : ndarray
        (n, N, N) residual convergence.
    significance : ndarray
        (n, N, N) significance map of the fit.
    labels : ndarray
        (n,) class indices.
    theta_E : ndarray
        (n,) fitted Einstein radii in arcsec.
    chi2 : ndarray
        (n,) chi-squared a pixel of the fits.
    rods : ndarray
        (n,) masses of rods in arcsec², pi theta_E²; NaN where there is none.
    """

    predicted: NDArray[np.float32]
    true: NDArray[np.float32]
    significance: NDArray[np.float32]
    labels: NDArray[np.int64]
    theta_E: Array
    chi2: Array
    rods: Array


def maps(network: nn.Module, batches: Iterable[LensBatch], rod_theta_E: ArrayLike) -> Maps:
    """Run a network that draws a residual convergence.

    Parameters
    ----------
    network : nn.Module
        Its outputs hold "kappa".
    batches : iterable of LensBatch
        n images with all entries.
    rod_theta_E : array_like
        (n,) Einstein radii of the rods in arcsec; NaN without a rod.

    Returns
    -------
    Maps
    """
    device = next(network.parameters()).device
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("predicted", "chi2", *_KEPT)}
    with torch.inference_mode():
        for batch in batches:
            drawn = network(batch.to(device))["kappa"]
            parts["predicted"].append(drawn.float().cpu().numpy())
            parts["chi2"].append(batch.need("residual").double().square().mean((1, 2)).numpy())
            for name in _KEPT:
                parts[name].append(batch.need(name).numpy())
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    rods = math.pi * np.asarray(rod_theta_E, np.float64) ** 2
    theta_E = joined["fit"][:, FIT_COLUMNS.index("theta_E")].astype(np.float64)
    kappa, shown = joined["kappa"], joined["significance"]
    return Maps(joined["predicted"], kappa, shown, joined["label"], theta_E, joined["chi2"], rods)


def correlations(predicted: ArrayLike, true: ArrayLike) -> Array:
    """Compute Pearson's correlation of each predicted map with the true one.

    Parameters
    ----------
    predicted, true : array_like
        (n, N, N).

    Returns
    -------
    numpy.ndarray
        (n,), NaN where either map is constant.
    """
    a, b = (np.asarray(maps, np.float64).reshape(len(np.asarray(maps)), -1) for maps in (predicted, true))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norm = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(norm > 0, (a * b).sum(1) / norm, math.nan), np.float64)


def pooled_correlation(predicted: ArrayLike, true: ArrayLike) -> float:
    """Compute Pearson's correlation over all pixels of all images together.

    Parameters
    ----------
    predicted, true : array_like
        (n, N, N).

    Returns
    -------
    float
        NaN where either is constant.
    """
    return float(correlations(np.asarray(predicted)[None], np.asarray(true)[None])[0])


def median_interval(values: Array, n_resamples: int, seed: int) -> tuple[float, float, float]:
    """Take the median of the finite values with its 95 % percentile bootstrap interval.

    Parameters
    ----------
    values : numpy.ndarray
        (n,).
    n_resamples : int
        Of the bootstrap.
    seed : int
        Of the resamples.

    Returns
    -------
    median, low, high : float
        NaN of no finite value.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    draws = np.random.default_rng(seed).integers(0, len(values), (n_resamples, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def kappa_mass(kappa: ArrayLike, pixel_scale: float) -> Array:
    """Sum the positive convergence over the image: pi theta_E² of a point mass.

    The negative part is left out: what the network takes away beside a rod is the smooth fit's share, not mass.

    Parameters
    ----------
    kappa : array_like
        (n, N, N).
    pixel_scale : float
        Arcsec per pixel.

    Returns
    -------
    ndarray
        Mass in arcsec², (n,).
    """
    return np.asarray(np.maximum(np.asarray(kappa, np.float64), 0.0).sum((1, 2)) * pixel_scale**2, np.float64)


@dataclass(frozen=True)
class Scale:
    """mass = exp(offset) * product of estimates ** slopes: a power law fitted to known masses."""

    slopes: tuple[float, ...]
    offset: float

    @classmethod
    def fitted(cls, estimates: Array, true: Array) -> "Scale":
        """Fit the scale to one set by least squares in the logarithm.

        Of no estimates, or with too few images to tell their slopes, the scale is the median mass, whatever they are.

        Parameters
        ----------
        estimates : ndarray
            (n, k), k of 0 or more.
        true : ndarray
            Masses, (n,).

        Returns
        -------
        Scale
        """
        k = estimates.shape[1]
        if k == 0 or len(true) < 3 * (k + 1):
            return cls((0.0,) * k, float(np.log(np.median(true))))
        x = np.log(np.maximum(estimates, _TINY))
        design = np.column_stack([x, np.ones(len(x))])
        *slopes, offset = np.linalg.lstsq(design, np.log(true), rcond=None)[0]
        return cls(tuple(float(slope) for slope in slopes), float(offset))

    def __call__(self, estimates: Array) -> Array:
        """Masses (n,) of estimates (n, k)."""
        return np.asarray(
            np.exp(np.log(np.maximum(estimates, _TINY)) @ np.array(self.slopes) + self.offset), np.float64
        )


def relative_error(estimate: Array, true: Array) -> Array:
    """Compute |estimate / true - 1|.

    Parameters
    ----------
    estimate, true : numpy.ndarray
        (n,).

    Returns
    -------
    numpy.ndarray
        (n,).
    """
    return np.asarray(np.abs(estimate / true - 1))
