"""What only tests compute: potentials and fields in closed form, and turns of a truth, to hold the package against."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from d4lens import lensing
from d4lens.data.truth import Truth
from d4lens.lensing import checks, d4
from d4lens.lensing.checks import Number, axis_ratio, like, parameter, positive
from d4lens.lensing.deflection import _axes, _off_centre, _relative, _rod_angle, _rod_axes, _sie_on_axes, core_squared
from d4lens.observation import Observation, bin_pixels
from d4lens.simulator.substructure import _rods


def read_truth(path: str | Path) -> Truth:
    """Read the truth of an archive."""
    with (
        zipfile.ZipFile(path) as file,
        file.open("dataset/truth.csv") as images,
        file.open("dataset/subhalos.csv") as subhalos,
    ):
        return Truth.from_csv(images, subhalos)


def supersample(
    function: Callable[[Tensor, Tensor], Tensor], n_pixels: int, pixel_scale: float, factor: int, dtype: torch.dtype
) -> Tensor:
    """Average a function over every pixel, by the midpoint rule on `factor` x `factor` points a pixel."""
    x, y = lensing.grid(n_pixels * factor, pixel_scale / factor, dtype)
    return bin_pixels(function(x, y), factor) / factor**2


def sis_convergence(x: Tensor, y: Tensor, theta_E: Number, x0: Number = 0.0, y0: Number = 0.0) -> Tensor:
    """Compute the convergence of a singular isothermal sphere, kappa = theta_E / 2r."""
    dx, dy = _relative(x, y, x0, y0)
    return positive("theta_E", theta_E) / 2 * torch.rsqrt(_off_centre(dx * dx + dy * dy))


def sis_potential(x: Tensor, y: Tensor, theta_E: Number, x0: Number = 0.0, y0: Number = 0.0) -> Tensor:
    """Compute the potential of a singular isothermal sphere, psi = theta_E r."""
    dx, dy = _relative(x, y, x0, y0)
    r2 = dx * dx + dy * dy
    return positive("theta_E", theta_E) * r2 * torch.rsqrt(_off_centre(r2))


def sie_potential(
    x: Tensor, y: Tensor, theta_E: Number, q: Number, phi: Number, x0: Number = 0.0, y0: Number = 0.0
) -> Tensor:
    """Compute the potential of a singular isothermal ellipsoid, psi = u alpha_u + v alpha_v."""
    dx, dy = _relative(x, y, x0, y0)
    u, v, _, _ = _axes(dx, dy, phi)
    au, av = _sie_on_axes(u, v, positive("theta_E", theta_E), like(axis_ratio("q", q), u))
    return u * au + v * av


def shear_potential(x: Tensor, y: Tensor, gamma1: Number, gamma2: Number) -> Tensor:
    """Compute the potential of an external shear, psi = gamma1 (x^2 - y^2)/2 + gamma2 x y."""
    x, y = checks.field("x", x), checks.field("y", y)
    return parameter("gamma1", gamma1) / 2 * (x * x - y * y) + parameter("gamma2", gamma2) * x * y


def point_mass_potential(x: Tensor, y: Tensor, theta_E: Number, x0: Number = 0.0, y0: Number = 0.0) -> Tensor:
    """Compute the potential of a point mass, psi = theta_E^2 ln r with r in arcsec."""
    dx, dy = _relative(x, y, x0, y0)
    theta_E = positive("theta_E", theta_E)
    r2 = dx * dx + dy * dy
    return theta_E * theta_E / 2 * r2.clamp_min(core_squared(r2.dtype)).log()


def rod_potential(
    x: Tensor, y: Tensor, theta_E: Number, half_length: Number, phi: Number, x0: Number = 0.0, y0: Number = 0.0
) -> Tensor:
    """Compute the potential of a rod, psi = theta_E^2 / 2L Re[(z+L) ln(z+L) - (z-L) ln(z-L) - 2L], the integral of ln r along it."""
    u, v, _, _, length, scale = _rod_axes(x, y, theta_E, half_length, phi, x0, y0)
    v2 = v * v

    def ends(end: Tensor) -> Tensor:
        return end / 2 * (end * end + v2).clamp_min(core_squared(u.dtype)).log()

    return scale * (ends(u + length) - ends(u - length) + v * _rod_angle(u, v, length) - 2 * length)


def transform_angle(phi: Number, g: int) -> Number:
    """Transform a position angle in radians, counted from x to y, by g."""
    flip, turns = d4._split(g)
    return (-phi if flip else phi) + turns * (math.pi / 2)


def substructure_deflection(truth: Truth, observation: Observation) -> tuple[Tensor, Tensor]:
    """Compute the deflection of the point masses and rods at the pixel centres, unsmoothed."""
    x, y = lensing.grid(observation.n_pixels, observation.pixel_scale, torch.float64)
    alpha_x = torch.zeros(len(truth), *x.shape, dtype=torch.float64)
    alpha_y = torch.zeros_like(alpha_x)
    for i, points in enumerate(truth.subhalo_arrays()):
        if points.size:
            alpha_x[i], alpha_y[i] = lensing.point_masses(x[:1], y[:, :1], *torch.from_numpy(points))
    for i, rod in zip(*_rods(truth)):
        dx, dy = lensing.rod(x, y, *rod.tolist())
        alpha_x[i] += dx
        alpha_y[i] += dy
    return alpha_x, alpha_y


def without_substructure(truth: Truth) -> Truth:
    """Return the same lenses with the same noise, point masses and rods taken out."""
    images = truth.images.copy()
    images[[name for name in images if name.startswith("rod_")]] = math.nan
    images["n_subhalos"] = 0
    return Truth(images, truth.subhalos.iloc[:0])
