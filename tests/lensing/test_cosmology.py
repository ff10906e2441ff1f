import math

import astropy.units as u
import numpy as np
import pytest
from astropy import constants
from astropy.cosmology import FlatLambdaCDM
from scipy.integrate import quad

from d4lens.errors import PhysicsError
from d4lens.lensing import theta_E_luminosity, theta_E_point

PEER = FlatLambdaCDM(H0=70, Om0=0.3, Tcmb0=0)


def comoving(z: float) -> float:
    """Comoving distance in Mpc by numerical integration of c / H(z)."""
    return 299792.458 / 70 * quad(lambda at: 1 / math.sqrt(0.3 * (1 + at) ** 3 + 0.7), 0, z, epsabs=0, epsrel=1e-12)[0]


def test_the_true_radius_agrees_with_its_definition() -> None:
    d_l, d_s = (PEER.angular_diameter_distance(z) for z in (0.5, 1.0))
    d_ls = PEER.angular_diameter_distance_z1z2(0.5, 1.0)
    radius = np.sqrt(4 * constants.G * 1e12 * u.Msun / constants.c**2 * d_ls / (d_l * d_s)).decompose().value
    np.testing.assert_allclose(
        theta_E_point(1e12, 0.5, 1.0), np.degrees(radius) * 3600, rtol=2e-5
    )  # G is known to 2e-5


@pytest.mark.parametrize(("z_lens", "z_source"), [(0.4, 0.8), (0.5, 1.0), (0.6, 1.2), (0.01, 3.0)])
def test_the_published_radius_takes_luminosity_distances(z_lens: float, z_source: float) -> None:
    d_l, d_s = (1 + z_lens) * comoving(z_lens), (1 + z_source) * comoving(z_source)
    d_ls = (comoving(z_source) - comoving(z_lens)) / (1 + z_source)
    to_angular = (1 + z_lens) * (1 + z_source)
    squared = (d_s - d_l) / d_ls / to_angular**2  # the distances of both formulas, as one ratio
    expected = theta_E_point(1e12, z_lens, z_source) * math.sqrt(squared)
    np.testing.assert_allclose(theta_E_luminosity(1e12, z_lens, z_source), expected, rtol=1e-10)


def test_luminosity_distances_reproduce_the_published_sets() -> None:
    assert abs(theta_E_luminosity(1e12, 0.5, 1.0) - 1.281) < 1e-3  # DeepLenseSim's Model I
    radii = theta_E_luminosity(1e12, np.linspace(0.4, 0.6, 41)[:, None], np.linspace(0.8, 1.2, 41)) / 0.05
    assert radii.shape == (41, 41)
    assert abs(radii.mean() - 25.3) < 0.3  # pixels, as measured on the published set
    assert abs(radii.std() - 3.7) < 0.3
    # Neither is the true radius.
    assert theta_E_point(1e12, 0.5, 1.0) / theta_E_luminosity(1e12, 0.5, 1.0) > 1.1


def test_the_radius_goes_as_the_root_of_the_mass() -> None:
    radii = theta_E_point([1e10, 1e12], 0.5, 1.0)
    np.testing.assert_allclose(radii[1] / radii[0], 10.0, rtol=1e-12)


@pytest.mark.parametrize("function", [theta_E_point, theta_E_luminosity])
def test_non_physical_values_are_refused(function) -> None:
    for arguments, match in (
        ((-1e12, 0.5, 1.0), "mass must be above 0, not -1e.12"),
        (([1e12, math.nan], 0.5, 1.0), "mass must be finite, not nan"),
        ((1e12, 0.0, 1.0), "z must be above 0, not 0"),
        ((1e12, 1.0, 0.5), "z_source - z_lens must be above 0, not -0.5"),
        ((1e12, [0.5, 1.5], 1.0), "z_source - z_lens must be above 0, not -0.5"),
        ((1e12, 0.5, math.nan), "must be finite, not nan"),
        ((1e12, 0.5, math.inf), "must be finite, not inf"),
    ):
        with pytest.raises(PhysicsError, match=match):
            function(*arguments)
