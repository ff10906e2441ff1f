"""Einstein radii in a flat LCDM universe with H0 = 70 km/s/Mpc and Omega_m = 0.3, without radiation.

Redshifts and masses are numbers or arrays that broadcast. Unlike the rest of the room these are no functions on tensors: everything is
computed in float64 by numpy and astropy.
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from d4lens.lensing.checks import parameter, positive

if TYPE_CHECKING:
    from astropy.cosmology import FlatLambdaCDM

_GM_SUN = 1.32712440018e11  # km^3/s^2
_SPEED_OF_LIGHT = 299792.458  # km/s
_KM_PER_MPC = 3.0856775814913673e19
_ARCSEC = np.degrees(1.0) * 3600


@cache
def flat_lcdm() -> "FlatLambdaCDM":
    """Return the cosmology of every distance in this project.

    Returns
    -------
    astropy.cosmology.FlatLambdaCDM
        H0 = 70 km/s/Mpc, Omega_m = 0.3, no radiation.
    """
    from astropy.cosmology import FlatLambdaCDM  # half a second, which prediction does without

    return FlatLambdaCDM(H0=70.0, Om0=0.3, Tcmb0=0.0)


def _redshifts(z_lens: ArrayLike, z_source: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check 0 < z_lens < z_source and broadcast both."""
    lens, source = np.broadcast_arrays(np.asarray(z_lens, np.float64), np.asarray(z_source, np.float64))
    for value in (lens, source):
        positive("z", float(value.min()))
        parameter("z", float(value.max()))
    parameter("z_source - z_lens", float((source - lens).min()), 0.0, low_open=True)
    return lens, source


def _einstein_radius(
    mass: ArrayLike, d_lens: NDArray[np.float64], d_source: NDArray[np.float64], d_between: NDArray[np.float64]
) -> NDArray[np.float64]:
    """sqrt(4 G M / c^2 D_LS / (D_L D_S)) in arcsec."""
    mass = np.asarray(mass, np.float64)
    positive("mass", float(mass.min()))
    parameter("mass", float(mass.max()))
    length = 4 * _GM_SUN / _SPEED_OF_LIGHT**2 / _KM_PER_MPC
    radius: NDArray[np.float64] = _ARCSEC * np.sqrt(length * mass * d_between / (d_lens * d_source))
    return radius


def theta_E_point(mass: ArrayLike, z_lens: ArrayLike, z_source: ArrayLike) -> NDArray[np.float64]:
    """Return the Einstein radius of a mass, with angular-diameter distances.

    Parameters
    ----------
    mass : array_like
        Mass in solar masses, above 0.
    z_lens, z_source : array_like
        Redshifts, 0 < z_lens < z_source. All three broadcast.

    Returns
    -------
    ndarray
        theta_E = sqrt(4 G M / c^2 D_LS / (D_L D_S)) in arcsec, float64.

    Raises
    ------
    PhysicsError
        If the mass or a redshift is out of range.
    """
    lens, source = _redshifts(z_lens, z_source)
    distance = flat_lcdm().angular_diameter_distance
    between = flat_lcdm().angular_diameter_distance_z1z2(lens, source).value
    return _einstein_radius(mass, distance(lens).value, distance(source).value, between)


def theta_E_luminosity(mass: ArrayLike, z_lens: ArrayLike, z_source: ArrayLike) -> NDArray[np.float64]:
    """Return the Einstein radius of a mass as the DeepLense simulations have it.

    They put luminosity distances into the formula of `theta_E_point`, and D_LS = D_S - D_L. Neither is the right distance.
    Their data cannot be matched without them.

    Parameters
    ----------
    mass : array_like
        Mass in solar masses, above 0.
    z_lens, z_source : array_like
        Redshifts, 0 < z_lens < z_source. All three broadcast.

    Returns
    -------
    ndarray
        Einstein radius in arcsec, float64.

    Raises
    ------
    PhysicsError
        If the mass or a redshift is out of range.
    """
    lens, source = _redshifts(z_lens, z_source)
    d_lens, d_source = (flat_lcdm().luminosity_distance(z).value for z in (lens, source))
    return _einstein_radius(mass, d_lens, d_source, d_source - d_lens)
