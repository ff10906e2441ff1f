"""Distances of a flat LCDM universe (H0 = 70 km/s/Mpc, Omega_m = 0.3; radiation left out) and Einstein radii.

Redshifts and masses are numbers or tensors that broadcast; distances are in Mpc, masses in solar masses, velocities in
km/s, Einstein radii in arcsec. Everything is computed in float64 unless a float32 tensor is given.
"""

import math

import numpy as np
import torch
from torch import Tensor

from d4lens.lensing.checks import Number, parameter, positive

H0 = 70.0
OMEGA_M = 0.3
SPEED_OF_LIGHT = 299792.458  # km/s
_GM_SUN = 1.32712440018e11  # km^3/s^2
_KM_PER_MPC = 3.0856775814913673e19
_ARCSEC = 180 * 3600 / math.pi
# 32 Gauss-Legendre points integrate 1/E(z) to rounding for z < 20.
_NODES, _WEIGHTS = ((torch.from_numpy(values)) for values in np.polynomial.legendre.leggauss(32))


def _tensor(value: Number) -> Tensor:
    return (
        value
        if isinstance(value, Tensor) and value.is_floating_point()
        else torch.as_tensor(value, dtype=torch.float64)
    )


def comoving_distance(z: Number) -> Tensor:
    """Line-of-sight comoving distance to redshift z > 0, in Mpc."""
    z = _tensor(positive("z", z))
    nodes, weights = _NODES.to(z), _WEIGHTS.to(z)
    at = z[..., None] * (nodes + 1) / 2
    inverse_E = torch.rsqrt(OMEGA_M * (1 + at) ** 3 + (1 - OMEGA_M))
    return SPEED_OF_LIGHT / H0 * z / 2 * (inverse_E * weights).sum(-1)


def luminosity_distance(z: Number) -> Tensor:
    """(1 + z) times the comoving distance, in Mpc."""
    return (1 + z) * comoving_distance(z)


def angular_diameter_distance(z: Number) -> Tensor:
    """The comoving distance over (1 + z), in Mpc."""
    return comoving_distance(z) / (1 + z)


def angular_diameter_distance_between(z_lens: Number, z_source: Number) -> Tensor:
    """D_LS = (D_C(z_source) - D_C(z_lens)) / (1 + z_source) of a flat universe, in Mpc.

    Raises PhysicsError unless 0 < z_lens < z_source.
    """
    _check_order(z_lens, z_source)
    return (comoving_distance(z_source) - comoving_distance(z_lens)) / (1 + z_source)


def _check_order(z_lens: Number, z_source: Number) -> None:
    parameter("z_source - z_lens", z_source - z_lens, 0.0, low_open=True)


def _einstein_radius(mass: Number, d_lens: Tensor, d_source: Tensor, d_between: Tensor) -> Tensor:
    """sqrt(4 G M / c^2 D_LS / (D_L D_S)) in arcsec."""
    length = 4 * _GM_SUN / SPEED_OF_LIGHT**2 / _KM_PER_MPC
    return _ARCSEC * torch.sqrt(length * positive("mass", mass) * d_between / (d_lens * d_source))


def theta_E_point(mass: Number, z_lens: Number, z_source: Number) -> Tensor:
    """Einstein radius in arcsec of a mass in solar masses, with angular-diameter distances.

    Raises PhysicsError for mass <= 0 or unless 0 < z_lens < z_source.
    """
    between = angular_diameter_distance_between(z_lens, z_source)
    return _einstein_radius(mass, angular_diameter_distance(z_lens), angular_diameter_distance(z_source), between)


def theta_E_luminosity(mass: Number, z_lens: Number, z_source: Number) -> Tensor:
    """Einstein radius in arcsec as the DeepLense simulations have it: the same formula with *luminosity* distances and
    D_LS = D_S - D_L. Neither is the right distance (use `theta_E_point`); their data cannot be matched without them.

    Raises PhysicsError for mass <= 0 or unless 0 < z_lens < z_source.
    """
    _check_order(z_lens, z_source)
    d_lens, d_source = luminosity_distance(z_lens), luminosity_distance(z_source)
    return _einstein_radius(mass, d_lens, d_source, d_source - d_lens)


def theta_E_sis(velocity_dispersion: Number, z_lens: Number, z_source: Number) -> Tensor:
    """Einstein radius in arcsec of an isothermal sphere, 4 pi (sigma_v/c)^2 D_LS/D_S; sigma_v in km/s.

    Raises PhysicsError for sigma_v <= 0 or unless 0 < z_lens < z_source.
    """
    between = angular_diameter_distance_between(z_lens, z_source)
    beta = positive("velocity_dispersion", velocity_dispersion) / SPEED_OF_LIGHT
    return _ARCSEC * 4 * math.pi * beta * beta * between / angular_diameter_distance(z_source)
