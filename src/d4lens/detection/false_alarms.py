"""How often noise alone shows so high a maximum anywhere in the image.

Trials of white noise go through the image's own profiled map. Their maxima are described by the expected Euler
characteristic of a Gaussian field above a level u (Adler 1981; Worsley 1994; in astronomy Vitells & Gross 2011),

    -ln P(highest <= u) = a u exp(-u²/2) + b Q(u),    Q(u) = P(N(0, 1) > u),

the first term for the area searched, the second for its number of pieces. a and b are those under which the trials are
likeliest, so that probabilities far below one over the number of trials are resolved.
"""

import zlib
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.stats import norm
from torch import Tensor

from d4lens.detection.filters import MatchedFilter

_TRIALS = 256
_LOWEST = sqrt(2.0)  # below it the first term would fall with the level


@dataclass(frozen=True)
class FalseAlarms:
    """The law above. area: a. pieces: b."""

    area: float
    pieces: float

    def probability(self, level: ArrayLike) -> NDArray[np.float64]:
        """Return the probability that noise alone exceeds a level anywhere in the image.

        Parameters
        ----------
        level : array_like
            Standard deviations.

        Returns
        -------
        ndarray
            Probabilities, of the shape of `level`.
        """
        u = np.maximum(np.asarray(level, np.float64), _LOWEST)
        return np.asarray(-np.expm1(-self.area * u * np.exp(-u * u / 2) - self.pieces * norm.sf(u)))


def law(highest: ArrayLike) -> FalseAlarms:
    """Find the law under which the highest values of trials are likeliest.

    Parameters
    ----------
    highest : array_like
        (K,) largest significance of each of K trials, in standard deviations.

    Returns
    -------
    FalseAlarms
        The law.
    """
    u = np.maximum(np.asarray(highest, np.float64), _LOWEST)
    first, first_slope = u * np.exp(-u * u / 2), np.exp(-u * u / 2) * (u * u - 1)
    second, second_slope = norm.sf(u), norm.pdf(u)

    def surprise(logs: NDArray[np.float64]) -> float:
        a, b = np.exp(np.clip(logs, -20, 20))
        density = np.log(np.maximum(a * first_slope + b * second_slope, 1e-300))
        return float((a * first + b * second - density).sum())

    found = minimize(surprise, [2.5, 4.5], method="Nelder-Mead").x
    return FalseAlarms(exp(found[0]), exp(found[1]))


def simulate_false_alarms(image: MatchedFilter, counts: Tensor) -> FalseAlarms:
    """Find an image's law by trials of white noise through its map.

    The noise is seeded by the image's own counts: the same image gives the same probabilities, other images independent ones.

    Parameters
    ----------
    image : MatchedFilter
        The image's matched filter.
    counts : Tensor
        (N, N) photons, which seed the noise.

    Returns
    -------
    FalseAlarms
        The law.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(counts.float().contiguous().numpy().tobytes()))
    return law(image.trials(_TRIALS, generator).numpy())
