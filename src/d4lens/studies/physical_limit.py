"""The physical limit, and how near each arm comes: what could be seen of a substructure, and what is.

The chi-squared gained by the true substructure over the best smooth lens, `gain`, is what an ideal detector works with.
One that knows the substructure's place and shape, and has the smooth lens profiled out, is a matched filter: its
statistic is a Gaussian of width 1 about sqrt(gain), about 0 without substructure (Neyman & Pearson 1933; in lensing
Vegetti & Koopmans 2009). No arm knows place or shape, so none should reach its curve. One that knows the shape and must
search for the place, among masses and places of a known distribution, is the likelihood ratio averaged over them
(`Search`): no detector finds more of that population at the same false alarms.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from torch import Tensor

from d4lens.detection import matched_filter, whitened
from d4lens.errors import PhysicsError
from d4lens.macrofit import SmoothLensModel, fit_smooth_lens
from d4lens.observation import bin_pixels
from d4lens.results.metrics import wilson
from d4lens.simulator import SUBHALO_COLUMNS, Preset, Truth, draw, render

Array = NDArray[np.float64]

_MASSES = 24  # that stand for all in the average

SIGMA_EDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, math.inf)
"""Edges of the bins in sqrt(gain), standard deviations of the ideal detector."""


def poisson_deviance(counts: Tensor, expected: Tensor) -> Tensor:
    """Compute the Poisson deviance 2 sum[k ln(k/m) - (k - m)].

    Parameters
    ----------
    counts : Tensor
        k, (B, N, N).
    expected : Tensor
        m, (B, N, N), above 0.

    Returns
    -------
    Tensor
        (B,) float64.
    """
    k, m = counts.double(), expected.double()
    return 2 * (torch.xlogy(k, k / m) - (k - m)).flatten(1).sum(1)


def mean_counts(truth: Truth, preset: Preset, binning: int) -> Tensor:
    """Render images without noise.

    Parameters
    ----------
    truth : Truth
        What is in them.
    preset : Preset
        How they are observed.
    binning : int
        Native pixels a side of one.

    Returns
    -------
    Tensor
        (B, N, N) float64, photons summed over binning x binning pixels.
    """
    return bin_pixels(render(truth, preset, noise=False), binning)


def gain(mean: Tensor, lens: SmoothLensModel, initial: Tensor | None = None) -> Array:
    """Compute the chi-squared that an image's true substructure gains over the best smooth lens, in the mean over noise.

    The lens is fitted to counts without noise; its free parameters thereby absorb what they can. The Poisson deviance that
    is left is the non-centrality of the likelihood ratio (Cowan, Cranmer, Gross & Vitells 2011, "Asimov data").

    Parameters
    ----------
    mean : Tensor
        (B, N, N) counts without noise.
    lens : SmoothLensModel
        The smooth lens.
    initial : Tensor, optional
        (B, F) where the fits start; None starts them from the image's moments.

    Returns
    -------
    ndarray
        (B,) chi-squared.
    """
    return np.asarray(
        poisson_deviance(mean, fit_smooth_lens(mean, lens, initial=initial).model_counts).numpy(), np.float64
    )


@dataclass(frozen=True)
class Search:
    """The detector that knows a point mass's shape and must search: what it searches in.

    Attributes
    ----------
    radii : (float, float)
        Einstein radii of the lens between which places are uniform in radius and angle.
    masses : (float, float)
        Between which masses are uniform in their logarithm, in units of the lens's own.
    """

    radii: tuple[float, float]
    masses: tuple[float, float]

    def statistic(self, counts: Tensor, fitted: Tensor, lens: SmoothLensModel) -> float:
        """Compute the logarithm of the likelihood ratio averaged over places and masses, smooth lens profiled out.

        It is of first order in the mass.

        Parameters
        ----------
        counts : Tensor
            (N, N) photons per pixel of `lens`.
        fitted : Tensor
            (F,) parameters of the smooth lens.
        lens : SmoothLensModel
            The smooth lens.

        Returns
        -------
        float
            The statistic.
        """
        image = matched_filter(counts, fitted, lens)
        explained, information = image.explained(whitened(counts, fitted, lens)), image.information
        theta_E = float(fitted[lens.free.index("theta_E")])
        radius = torch.hypot(*lens.pixel_centres()).cpu() / theta_E
        inside = (radius >= self.radii[0]) & (radius <= self.radii[1])
        weight = torch.where(inside, 1 / radius, 0.0).clamp_min(1e-300).log()
        masses = torch.from_numpy(np.geomspace(*self.masses, _MASSES))
        strength = (theta_E**2 * masses)[:, None, None]
        ratios = strength * explained - strength**2 * information / 2 + weight
        return float(torch.logsumexp(ratios.flatten(), 0) - torch.logsumexp(weight.flatten(), 0) - math.log(_MASSES))


def measured_gain(counts: Tensor, smooth: Tensor, mean: Tensor, n_free: int) -> Array:
    """Measure the gain in noisy images: deviance of the smooth fit less that of the true mean counts.

    The fit follows the noise in `n_free` directions, which is added back. The mean is then `gain` and the variance near
    4 gain + 2 n_free: a check of the one against the other.

    Parameters
    ----------
    counts, smooth, mean : Tensor
        (B, N, N) photon counts, best smooth fit, and mean counts.
    n_free : int
        Free parameters of the fit.

    Returns
    -------
    ndarray
        (B,) chi-squared.
    """
    return np.asarray((poisson_deviance(counts, smooth) - poisson_deviance(counts, mean)).numpy() + n_free, np.float64)


def ideal_rate(gained: ArrayLike, false_positive_rate: float) -> Array:
    """Compute the detection probability of the matched filter that knows place and shape: P(N(sqrt(gain), 1) > z).

    Parameters
    ----------
    gained : array_like
        (n,) chi-squared gained by the true substructure.
    false_positive_rate : float
        Between 0 and 1.

    Returns
    -------
    numpy.ndarray
        (n,).

    Raises
    ------
    PhysicsError
        For a rate out of range.
    """
    if not 0 < false_positive_rate < 1:
        raise PhysicsError(f"false_positive_rate must lie between 0 and 1, not {false_positive_rate}")
    signal = np.sqrt(np.maximum(np.asarray(gained, np.float64), 0.0))
    return np.asarray(norm.sf(norm.isf(false_positive_rate) - signal), np.float64)


def curve(gained: Array, detected: Mapping[str, NDArray[np.bool_]], ideal: Array) -> pd.DataFrame:
    """Tabulate the detection rate in bins of sqrt(gain), for each arm and for the ideal detector.

    Parameters
    ----------
    gained : ndarray
        Gain in chi-squared of each image, (n,).
    detected : mapping of str to ndarray
        By arm, (n,) bool.
    ideal : ndarray
        Probability of detection, (n,).

    Returns
    -------
    pandas.DataFrame
        Columns arm, sigma_low, sigma_high, sigma (median in the bin), rate, low, high (95 % of a share), images. Empty bins
        have no row.
    """
    sigma = np.sqrt(np.maximum(gained, 0.0))
    rows = []
    for low, high in pairwise(SIGMA_EDGES):
        here = (sigma >= low) & (sigma < high)
        n = int(here.sum())
        if not n:
            continue
        place = {"sigma_low": low, "sigma_high": min(high, 1e6), "sigma": float(np.median(sigma[here])), "images": n}
        rows.append({"arm": "ideal", **place, **_share(ideal[here])})
        rows += [{"arm": arm, **place, **_share(found[here])} for arm, found in detected.items()]
    return pd.DataFrame(rows, columns=["arm", "sigma_low", "sigma_high", "sigma", "rate", "low", "high", "images"])


def one_subhalo(preset: Preset, seed: int, masses: ArrayLike, radii: ArrayLike, azimuths: ArrayLike) -> Truth:
    """Draw lenses of the preset with a single point mass each.

    Image i is the lens that `draw` gives index i of `seed`, so the preset's own images differ in the seed.

    Parameters
    ----------
    preset : Preset
        What the lenses are drawn from.
    seed : int
        Of the lenses.
    masses : array_like
        (n,), solar masses.
    radii : array_like
        (n,), in Einstein radii of the lens.
    azimuths : array_like
        (n,), radians.

    Returns
    -------
    Truth
    """
    mass, radius, angle = (np.asarray(values, np.float64) for values in (masses, radii, azimuths))
    smooth = draw(preset, seed, range(len(mass)), "none", "val")
    lens = smooth.images
    rows = {
        "path": lens["path"],
        "mass": mass,
        # Same lens and source planes: theta_E^2 goes as the mass.
        "theta_E": lens["theta_E"] * np.sqrt(mass / lens["halo_mass"]),
        "x": lens["theta_E"] * radius * np.cos(angle),
        "y": lens["theta_E"] * radius * np.sin(angle),
    }
    return Truth(lens.assign(n_subhalos=1), pd.DataFrame(rows, columns=list(SUBHALO_COLUMNS)))


def grid_of(
    mass_edges: Sequence[float], radius_edges: Sequence[float], per_cell: int, seed: int
) -> tuple[Array, Array, Array]:
    """Draw masses, radii and azimuths in the cells of a grid: log-uniform, uniform, uniform.

    Parameters
    ----------
    mass_edges : sequence of float
        Edges of the cells, Msun.
    radius_edges : sequence of float
        Edges of the cells, in Einstein radii.
    per_cell : int
        Draws in each cell.
    seed : int
        Of the draws.

    Returns
    -------
    masses, radii, azimuths : numpy.ndarray
        (n,) each: Msun, Einstein radii, rad.
    """
    draws = np.random.default_rng([seed, 1]).random((3, len(mass_edges) - 1, len(radius_edges) - 1, per_cell))
    m, r = np.log10(np.asarray(mass_edges)), np.asarray(radius_edges, np.float64)
    log_mass = m[:-1, None, None] + np.diff(m)[:, None, None] * draws[0]
    radius = r[None, :-1, None] + np.diff(r)[None, :, None] * draws[1]
    return 10 ** log_mass.ravel(), radius.ravel(), 2 * math.pi * draws[2].ravel()


def rates(
    masses: Array,
    radii: Array,
    detected: Mapping[str, Array],
    mass_edges: Sequence[float],
    radius_edges: Sequence[float],
) -> pd.DataFrame:
    """Tabulate the detection rate in each cell of mass and radius.

    Parameters
    ----------
    masses : ndarray
        (n,), solar masses.
    radii : ndarray
        (n,), Einstein radii.
    detected : mapping of str to ndarray
        By arm, (n,) of booleans or probabilities.
    mass_edges, radius_edges : sequence of float
        Of the cells.

    Returns
    -------
    pandas.DataFrame
        Columns arm, mass_low, mass_high (solar masses), radius_low, radius_high (Einstein radii), rate, low, high, images.
    """
    m, r = np.digitize(masses, mass_edges) - 1, np.digitize(radii, radius_edges) - 1
    rows = []
    for arm, found in detected.items():
        for i in range(len(mass_edges) - 1):
            for j in range(len(radius_edges) - 1):
                here = (m == i) & (r == j)
                if here.any():
                    cell = {"mass_low": mass_edges[i], "mass_high": mass_edges[i + 1]}
                    cell |= {"radius_low": radius_edges[j], "radius_high": radius_edges[j + 1]}
                    rows.append({"arm": arm, **cell, **_share(found[here]), "images": int(here.sum())})
    return pd.DataFrame(rows)


def half_mass(table: pd.DataFrame, arm: str, radius_low: float, radius_high: float) -> float:
    """Find the mass at which an arm's detection rate, averaged over cells within the radii, first reaches one half.

    It is interpolated in the logarithm of the mass.

    Parameters
    ----------
    table : pandas.DataFrame
        Of `rates`.
    arm : str
        The arm.
    radius_low, radius_high : float
        Einstein radii.

    Returns
    -------
    float
        Solar masses; NaN where the rate stays below, or begins above.
    """
    inside = (table["arm"] == arm) & (table["radius_low"] >= radius_low) & (table["radius_high"] <= radius_high)
    rows = table[inside]
    rate = rows.assign(hits=rows["rate"] * rows["images"]).groupby(["mass_low", "mass_high"])[["hits", "images"]].sum()
    values = (rate["hits"] / rate["images"]).to_numpy()
    middle = np.array([0.5 * (math.log10(low) + math.log10(high)) for low, high in rate.index])
    above = np.flatnonzero(values >= 0.5)
    if not len(above) or above[0] == 0:
        return math.nan
    i = int(above[0])
    return float(10 ** np.interp(0.5, values[i - 1 : i + 1], middle[i - 1 : i + 1]))


def _share(found: NDArray[np.bool_] | Array) -> dict[str, float]:
    n, rate = len(found), float(np.mean(found))
    # A mean of known probabilities has no sampling error in its outcome.
    low, high = wilson(int(found.sum()), n) if found.dtype == bool else (rate, rate)
    return {"rate": rate, "low": low, "high": high}
