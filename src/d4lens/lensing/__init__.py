"""The physics of a gravitational lens: pure functions on tensors, in arcsec, differentiable everywhere."""

from d4lens.lensing import d4
from d4lens.lensing.blur import convolve_psf, gaussian_psf
from d4lens.lensing.checks import unchecked
from d4lens.lensing.deflection import (
    point_mass,
    point_mass_convergence,
    point_masses,
    rod,
    rod_convergence,
    shear,
    sie,
    sie_convergence,
    sis,
)
from d4lens.lensing.distortion import (
    determinant,
    jacobian,
    jacobian_from_field,
    magnification,
    magnification_from_field,
)
from d4lens.lensing.light import axis_ratio_and_angle, ellipticity, sersic, sersic_ellipticity
from d4lens.lensing.pixels import grid
from d4lens.lensing.planes import to_image_plane, to_source_plane
from d4lens.lensing.poisson import PoissonSolver

__all__ = [
    "PoissonSolver",
    "axis_ratio_and_angle",
    "convolve_psf",
    "d4",
    "determinant",
    "ellipticity",
    "gaussian_psf",
    "grid",
    "jacobian",
    "jacobian_from_field",
    "magnification",
    "magnification_from_field",
    "point_mass",
    "point_mass_convergence",
    "point_masses",
    "rod",
    "rod_convergence",
    "sersic",
    "sersic_ellipticity",
    "shear",
    "sie",
    "sie_convergence",
    "sis",
    "to_image_plane",
    "to_source_plane",
    "unchecked",
]
