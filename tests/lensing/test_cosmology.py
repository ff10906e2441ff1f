import math

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy import constants
from astropy.cosmology import FlatLambdaCDM

from d4lens.errors import PhysicsError
from d4lens.lensing import (
    angular_diameter_distance,
    angular_diameter_distance_between,
    comoving_distance,
    luminosity_distance,
    theta_E_luminosity,
    theta_E_point,
    theta_E_sis,
)

PEER = FlatLambdaCDM(H0=70, Om0=0.3, Tcmb0=0)
ARCSEC = 180 * 3600 / math.pi


@pytest.mark.parametrize("z", [0.01, 0.5, 1.0, 3.0, 10.0])
def test_distances_agree_with_astropy(z: float) -> None:
    np.testing.assert_allclose(comoving_distance(z).item(), PEER.comoving_distance(z).value, rtol=1e-9)
    np.testing.assert_allclose(luminosity_distance(z).item(), PEER.luminosity_distance(z).value, rtol=1e-9)
    np.testing.assert_allclose(angular_diameter_distance(z).item(), PEER.angular_diameter_distance(z).value, rtol=1e-9)
    between = PEER.angular_diameter_distance_z1z2(z / 2, z).value
    np.testing.assert_allclose(angular_diameter_distance_between(z / 2, z).item(), between, rtol=1e-9)


def test_einstein_radii_agree_with_their_definitions() -> None:
    d_l, d_s = (PEER.angular_diameter_distance(z) for z in (0.5, 1.0))
    d_ls = PEER.angular_diameter_distance_z1z2(0.5, 1.0)
    point = np.sqrt(4 * constants.G * 1e12 * u.Msun / constants.c**2 * d_ls / (d_l * d_s)).decompose().value * ARCSEC
    np.testing.assert_allclose(theta_E_point(1e12, 0.5, 1.0).item(), point, rtol=2e-5)  # G is known to 2e-5
    sis = (4 * np.pi * (220 * u.km / u.s / constants.c) ** 2 * d_ls / d_s).decompose().value * ARCSEC
    np.testing.assert_allclose(theta_E_sis(220, 0.5, 1.0).item(), sis, rtol=1e-9)


def test_luminosity_distances_reproduce_the_published_sets() -> None:
    assert abs(theta_E_luminosity(1e12, 0.5, 1.0).item() - 1.281) < 1e-3  # DeepLenseSim's Model I
    z_lens = torch.linspace(0.4, 0.6, 41, dtype=torch.float64)[:, None]
    z_source = torch.linspace(0.8, 1.2, 41, dtype=torch.float64)
    radii = theta_E_luminosity(1e12, z_lens, z_source) / 0.05
    assert radii.shape == (41, 41)
    assert abs(radii.mean() - 25.3) < 0.3  # pixels, as measured on the published set
    assert abs(radii.std() - 3.7) < 0.3
    # Neither is the true radius.
    assert theta_E_point(1e12, 0.5, 1.0) / theta_E_luminosity(1e12, 0.5, 1.0) > 1.1


def test_scaling_dtype_and_gradients() -> None:
    mass = torch.tensor([1e10, 1e12], dtype=torch.float64, requires_grad=True)
    radii = theta_E_point(mass, 0.5, 1.0)
    torch.testing.assert_close(radii[1] / radii[0], torch.tensor(10.0, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(radii.sum(), mass)
    torch.testing.assert_close(gradient * mass * 2, radii)
    assert comoving_distance(torch.tensor(0.5)).dtype == torch.float32
    assert comoving_distance(1).dtype == torch.float64


@pytest.mark.parametrize("function", [theta_E_point, theta_E_luminosity])
def test_non_physical_values_are_refused(function) -> None:
    for arguments, match in (
        ((-1e12, 0.5, 1.0), "mass must be above 0, not -1e.12"),
        ((1e12, 0.0, 1.0), "z must be above 0, not 0"),
        ((1e12, 1.0, 0.5), "z_source - z_lens must be above 0, not -0.5"),
        ((1e12, torch.tensor([0.5, 1.5]), 1.0), "z_source - z_lens must be above 0, not -0.5"),
        ((1e12, 0.5, math.nan), "must be finite, not nan"),
    ):
        with pytest.raises(PhysicsError, match=match):
            function(*arguments)
    with pytest.raises(PhysicsError, match="velocity_dispersion must be above 0"):
        theta_E_sis(0.0, 0.5, 1.0)
