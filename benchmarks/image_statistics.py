"""Per-image statistics by which simulated images are held against genuine ones."""

from dataclasses import dataclass, fields

import numpy as np
from scipy.stats import ks_2samp

RADII = np.arange(0.0, 3.75, 0.25)
"""Inner edges in arcsec of the annuli of the radial profile; the last one ends at 3.75."""

LEVELS = (20.0, 40.0, 80.0, 160.0, 320.0, 1e9)
"""Edges, in counts, of the bins in which the noise is measured; the first begins at 0."""


@dataclass(frozen=True)
class Statistics:
    """Of B images. Counts are above each image's minimum: that is all a min-max normalised image tells."""

    peak: np.ndarray  # (B,) brightest pixel
    sky_mean: np.ndarray  # (B,) mean of the four corners, 15 pixels square each
    sky_variance: np.ndarray  # (B,) variance within the corners
    ring_radius: np.ndarray  # (B,) arcsec, where the azimuthal mean is brightest
    profile: np.ndarray  # (B, len(RADII)) azimuthal mean less the sky, over its sum
    noise: np.ndarray  # (B, len(LEVELS)) variance of the noise over the mean count, 1 if it is Poisson's


def statistics(counts: np.ndarray, pixel_scale: float, sky: float) -> Statistics:
    """Statistics of counts (B, N, N), in any origin; `pixel_scale` in arcsec, `sky` mean counts per pixel.

    The noise is that of (k_left - 2 k + k_right)/sqrt(6), which has the variance of one pixel where the signal is
    straight over three. Pixels go into bins by the mean of the three, whose noise and curvature bias genuine and
    simulated images alike. A bin that fewer than 100 pixels reach is NaN.
    """
    k = counts.astype(np.float64)
    k -= k.min(axis=(1, 2), keepdims=True)
    n = k.shape[-1]
    c = max(n // 10, 1)
    corners = np.concatenate(
        [k[:, a, b].reshape(len(k), -1) for a in (slice(c), slice(-c, None)) for b in (slice(c), slice(-c, None))],
        axis=1,
    )
    sky_mean = corners.mean(1)

    axis = (np.arange(n) - (n - 1) / 2) * pixel_scale
    radius = np.hypot(axis[:, None], axis)
    fine = np.arange(0.0, radius.max(), 2 * pixel_scale)
    means = _annular_means(k, radius, fine)
    ring = fine[means[:, : np.searchsorted(fine, n / 2 * pixel_scale)].argmax(1)] + pixel_scale
    profile = _annular_means(k, radius, np.append(RADII, RADII[-1] + (RADII[1] - RADII[0])))[:, : len(RADII)]
    profile -= sky_mean[:, None]
    profile /= profile.sum(1, keepdims=True)

    second = (k[:, :, :-2] - 2 * k[:, :, 1:-1] + k[:, :, 2:]) / np.sqrt(6)
    mean = (k[:, :, :-2] + k[:, :, 1:-1] + k[:, :, 2:]) / 3 + (sky - sky_mean)[:, None, None]
    noise = np.full((len(k), len(LEVELS)), np.nan)
    for i in range(len(k)):
        level = np.digitize(mean[i], LEVELS)
        for j in range(len(LEVELS)):
            here = level == j
            if here.sum() >= 100:
                noise[i, j] = (second[i][here] ** 2).mean() / mean[i][here].mean()
    return Statistics(k.max((1, 2)), sky_mean, corners.var(1), ring, profile, noise)


def compare(genuine: Statistics, simulated: Statistics) -> dict[str, dict[str, float]]:
    """Each statistic's mean and spread in both sets, z of the genuine mean, and the Kolmogorov-Smirnov probability.

    z is in standard errors of a mean of that many images, by the simulation's spread. Of a profile or noise curve each
    bin that at least 5 genuine images reach is a statistic, named by its number.
    """
    result = {}
    for field in fields(Statistics):
        a, b = (np.atleast_2d(getattr(s, field.name).T) for s in (genuine, simulated))
        for i, (x, y) in enumerate(zip(a, b)):
            x, y = x[~np.isnan(x)], y[~np.isnan(y)]
            if min(len(x), len(y)) < 5:
                continue
            result[field.name if len(a) == 1 else f"{field.name} {i}"] = {
                "genuine": x.mean(),
                "genuine_spread": x.std(ddof=1),
                "simulated": y.mean(),
                "simulated_spread": y.std(ddof=1),
                "z": (x.mean() - y.mean()) / (y.std(ddof=1) * np.sqrt(1 / len(x) + 1 / len(y))),
                "p": float(ks_2samp(x, y).pvalue),
            }
    return result


def _annular_means(k: np.ndarray, radius: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean of each image in the annuli between consecutive edges (the last is open): (B, len(edges))."""
    which = np.digitize(radius.ravel(), edges) - 1
    size = np.bincount(which, minlength=len(edges))
    return np.stack([np.bincount(which, image.ravel(), len(edges)) for image in k]) / np.maximum(size, 1)
