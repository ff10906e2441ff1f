"""Light of galaxies: the Sérsic profile, and the two ways to write an ellipse."""

import torch
from torch import Tensor

from d4lens.lensing.checks import Number, axis_ratio, like, parameter, positive
from d4lens.lensing.deflection import _axes, _relative, core_squared


def b_n(n: Number) -> Number:
    """Return Sérsic's b_n = 1.9992 n - 0.3271, good for 0.5 <= n <= 10 (Capaccioli 1989; lenstronomy's choice).

    Parameters
    ----------
    n : float or Tensor
        The Sérsic index.

    Returns
    -------
    float or Tensor
        b_n.
    """
    return 1.9992 * n - 0.3271


def _profile(radius_squared: Tensor, amplitude: Number, R_e: Number, n: Number) -> Tensor:
    amplitude = parameter("amplitude", amplitude, 0.0)
    R_e = positive("R_e", R_e)
    n = parameter("n", n, 0.5, 10.0)
    # At the centre the power's slope is infinite: the value there is exact and its gradient zero.
    centre = radius_squared < core_squared(radius_squared.dtype)
    ratio = radius_squared.masked_fill(centre, 1) / (R_e * R_e)
    power = (ratio ** (0.5 / n)).masked_fill(centre, 0)
    return amplitude * torch.exp(b_n(n) * (1 - power))


def sersic(
    x: Tensor,
    y: Tensor,
    amplitude: Number,
    R_e: Number,
    n: Number,
    q: Number,
    phi: Number,
    x0: Number = 0.0,
    y0: Number = 0.0,
) -> Tensor:
    """Compute an elliptical Sérsic surface brightness, as lenstronomy's SERSIC_ELLIPSE.

    I = amplitude exp(-b_n [(R/R_e)^(1/n) - 1]) with R^2 = q u^2 + v^2/q, so that an ellipse keeps the area of the circle of R. All
    arguments broadcast.

    Parameters
    ----------
    x, y : Tensor
        Coordinates in arcsec; u and v are those along the major and the minor axis.
    amplitude : float or Tensor
        Brightness at R_e, at least 0.
    R_e : float or Tensor
        Half-light radius in arcsec, above 0.
    n : float or Tensor
        Sérsic index in [0.5, 10].
    q : float or Tensor
        Axis ratio in (0, 1].
    phi : float or Tensor
        Direction of the major axis in radians from x to y.
    x0, y0 : float or Tensor
        Centre in arcsec.

    Returns
    -------
    Tensor
        Brightness in the unit of `amplitude`.

    Raises
    ------
    PhysicsError
        If a value is out of range.
    """
    dx, dy = _relative(x, y, x0, y0)
    u, v, _, _ = _axes(dx, dy, phi)
    q = axis_ratio("q", q)
    return _profile(q * (u * u) + v * v / q, amplitude, R_e, n)


def sersic_ellipticity(
    x: Tensor,
    y: Tensor,
    amplitude: Number,
    R_e: Number,
    n: Number,
    e1: Number,
    e2: Number,
    x0: Number = 0.0,
    y0: Number = 0.0,
) -> Tensor:
    """Compute `sersic` from ellipticity components, smooth at e = 0, as a fit needs.

    R^2 = [(1 + e^2) r^2 - 2 e1 (x^2 - y^2) - 4 e2 x y] / (1 - e^2).

    Parameters
    ----------
    x, y, amplitude, R_e, n
        As for `sersic`.
    e1, e2 : float or Tensor
        (1 - q)/(1 + q) (cos 2phi, sin 2phi), e1^2 + e2^2 below 1.
    x0, y0
        As for `sersic`.

    Returns
    -------
    Tensor
        Brightness in the unit of `amplitude`.

    Raises
    ------
    PhysicsError
        If a value is out of range.
    """
    dx, dy = _relative(x, y, x0, y0)
    e1, e2 = parameter("e1", e1), parameter("e2", e2)
    e_squared = parameter("e1^2 + e2^2", e1 * e1 + e2 * e2, high=1.0, high_open=True)
    x2, y2 = dx * dx, dy * dy
    r2 = ((1 + e_squared) * (x2 + y2) - 2 * e1 * (x2 - y2) - 4 * e2 * (dx * dy)) / (1 - e_squared)
    return _profile(r2, amplitude, R_e, n)


def ellipticity(q: Number, phi: Number) -> tuple[Tensor, Tensor]:
    """Convert axis ratio and angle to ellipticity components.

    Parameters
    ----------
    q : float or Tensor
        Axis ratio in (0, 1]. PhysicsError otherwise.
    phi : float or Tensor
        Direction of the major axis in radians from x to y.

    Returns
    -------
    e1, e2 : Tensor
        (1 - q)/(1 + q) (cos 2phi, sin 2phi).
    """
    q = like(axis_ratio("q", q), phi if isinstance(phi, Tensor) else torch.zeros(()))
    phi = like(parameter("phi", phi), q)
    e = (1 - q) / (1 + q)
    return e * torch.cos(2 * phi), e * torch.sin(2 * phi)


def axis_ratio_and_angle(e1: Number, e2: Number) -> tuple[Tensor, Tensor]:
    """Convert ellipticity components to axis ratio and angle.

    Parameters
    ----------
    e1, e2 : float or Tensor
        Components, |e| below 1. PhysicsError otherwise.

    Returns
    -------
    q : Tensor
        Axis ratio in (0, 1].
    phi : Tensor
        Angle in (-pi/2, pi/2]. At e = 0 it is undefined: 0 is returned, with zero gradients.
    """
    e1 = like(parameter("e1", e1), e2 if isinstance(e2, Tensor) else torch.zeros(()))
    e2 = like(parameter("e2", e2), e1)
    squared = e1 * e1 + e2 * e2
    parameter("e1^2 + e2^2", squared, high=1.0, high_open=True)
    round_ = squared < core_squared(squared.dtype)
    e = squared.masked_fill(round_, 1).sqrt().masked_fill(round_, 0)
    phi = torch.atan2(e2.masked_fill(round_, 0), e1.masked_fill(round_, 1)) / 2
    return (1 - e) / (1 + e), phi
