"""Maps of the truth: what a network is taught, and what an image would be without noise or without substructure."""

import math
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d4lens import lensing
from d4lens.data.truth import Truth
from d4lens.errors import PhysicsError
from d4lens.observation import Observation

_ROD = ("rod_theta_E", "rod_half_length", "rod_phi", "rod_x", "rod_y")
_BATCH = 32
_T = TypeVar("_T", bound=np.generic)


def substructure_convergence(truth: Truth, observation: Observation, smoothing_px: float = 2.0) -> Tensor:
    """Compute the convergence of the point masses and rods, smoothed by a Gaussian. It is exact: no grid is involved.

    The centre of the array is the centre of the lens, so a binned observation must divide the image evenly.

    Parameters
    ----------
    truth : Truth
        B lenses.
    observation : Observation
        The grid, which may be a binned one.
    smoothing_px : float
        Standard deviation in pixels of `observation`, above 0. At least 2 are advised: the masses are far smaller than a pixel.

    Returns
    -------
    Tensor
        (B, N, N) float32. The convergence of a point mass integrates to pi theta_E² arcsec².

    Raises
    ------
    PhysicsError
        If the smoothing is not positive.
    """
    if not smoothing_px > 0:
        raise PhysicsError(f"smoothing_px must be above 0 pixels, not {smoothing_px}")
    sigma = smoothing_px * observation.pixel_scale
    n = observation.n_pixels
    x, y = lensing.grid(n, observation.pixel_scale, torch.float64)
    kappa = torch.zeros(len(truth), n, n)
    points = truth.subhalo_arrays()
    where = np.flatnonzero([p.size > 0 for p in points])
    for rows in _batches(where):
        theta_E, xk, yk = _padded([points[i] for i in rows])[..., None]
        # A Gaussian is a product over the axes: K masses are one (N, K) x (K, N) product.
        across = torch.exp(-0.5 * ((x[0] - xk) / sigma) ** 2)
        down = torch.exp(-0.5 * ((x[0] - yk) / sigma) ** 2) * (theta_E**2 / (2 * sigma**2))
        kappa[rows] += (down.mT @ across).float()
    where, rods = _rods(truth)
    for rows, rod in zip(_batches(where), _batches(rods)):
        theta_E, half_length, phi, x0, y0 = torch.from_numpy(rod.T.copy())[..., None, None]
        kappa[rows] += lensing.rod_convergence(x, y, theta_E, half_length, phi, x0, y0, sigma).float()
    return kappa


def lens_convergence(truth: Truth, observation: Observation) -> Tensor:
    """Compute the convergence of the whole lens: the smooth mass, and the substructure smoothed to two pixels.

    Parameters
    ----------
    truth : Truth
        B lenses.
    observation : Observation
        The grid.

    Returns
    -------
    Tensor
        (B, N, N) float32, above 0. A pixel at the very centre, where it diverges, has a sphere's mean over the pixel.
    """
    x, y = lensing.grid(observation.n_pixels, observation.pixel_scale, torch.float64)
    x = torch.where((x == 0) & (y == 0), observation.pixel_scale / (4 * math.asinh(1)), x)
    table = truth.images[["theta_E", "lens_q", "lens_phi"]].to_numpy(np.float64)
    theta_E, q, phi = torch.from_numpy(table.T.copy())[..., None, None]
    return lensing.sie_convergence(x, y, theta_E, q, phi).float() + substructure_convergence(truth, observation)


def _batches(rows: NDArray[_T]) -> Iterator[NDArray[_T]]:
    """Yield pieces that fit into the cache."""
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def _padded(points: list[NDArray[np.float64]]) -> Tensor:
    """Stack the point masses of several images as (3, B, K), shorter lists filled up with masses of zero."""
    padded = np.zeros((3, len(points), max(p.shape[1] for p in points)))
    for i, p in enumerate(points):
        padded[:, i, : p.shape[1]] = p
    return torch.from_numpy(padded)


def _rods(truth: Truth) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the rows that have a rod, and its parameters (R, 5) in the order of `lensing.rod`."""
    table = truth.images[list(_ROD)].to_numpy(np.float64)
    where = np.flatnonzero(~np.isnan(table[:, 0]))
    return where, table[where]
