"""Closed-form lenses: deflection, convergence and potential, in arcsec, with lap(psi) = 2 kappa and alpha = grad(psi).

Every function takes coordinates x, y and parameters that broadcast against them (numbers, or tensors such as
(B, 1, 1) for (N, N) coordinates), and follows their dtype and device. Angles phi are radians from x to y.
Deflections are zero, and every gradient finite, within 1e-12 arcsec of a singular centre.
PhysicsError names an argument that is not finite or out of range.
"""

import math

import numpy as np
import torch
from torch import Tensor

from d4lens.lensing import checks
from d4lens.lensing.checks import Number, axis_ratio, like, parameter, positive


def _relative(x: Tensor, y: Tensor, x0: Number, y0: Number) -> tuple[Tensor, Tensor]:
    """Coordinates from the centre."""
    x, y = checks.field("x", x), checks.field("y", y)
    return x - parameter("x0", x0), y - parameter("y0", y0)


def _axes(dx: Tensor, dy: Tensor, phi: Number) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(u, v) along and across the direction phi, with its cosine and sine."""
    phi = like(parameter("phi", phi), dx)
    cos, sin = phi.cos(), phi.sin()
    return dx * cos + dy * sin, dy * cos - dx * sin, cos, sin


def core_squared(dtype: torch.dtype) -> float:
    """Return the squared radius in arcsec^2 below which a point counts as the centre.

    Parameters
    ----------
    dtype : torch.dtype
        A floating-point type.

    Returns
    -------
    float
        At least 1e-24 arcsec^2, and no subnormal number of the type.
    """
    return max(1e-24, torch.finfo(dtype).tiny)


def _off_centre(r2: Tensor) -> Tensor:
    """r2 with infinity at the centre: 1/r and all its derivatives are then exactly zero there, not NaN."""
    return r2.masked_fill(r2 < core_squared(r2.dtype), math.inf)


def sis(x: Tensor, y: Tensor, theta_E: Number, x0: Number = 0.0, y0: Number = 0.0) -> tuple[Tensor, Tensor]:
    """Deflect by a singular isothermal sphere: |alpha| = theta_E everywhere.

    Parameters
    ----------
    x, y : Tensor
        Coordinates in arcsec.
    theta_E : float or Tensor
        Einstein radius in arcsec, above 0.
    x0, y0 : float or Tensor
        Centre in arcsec.

    Returns
    -------
    alpha_x, alpha_y : Tensor
        Deflection in arcsec, of the broadcast shape.
    """
    dx, dy = _relative(x, y, x0, y0)
    scale = positive("theta_E", theta_E) * torch.rsqrt(_off_centre(dx * dx + dy * dy))
    return scale * dx, scale * dy


# atan(t)/t = sum (-t^2)^k / (2k+1), and with the other sign atanh(t)/t; below _SERIES ten terms leave 3e-17.
_SERIES = 0.03
_TERMS = 10


def _series(minus_t2: Tensor) -> Tensor:
    total = torch.full_like(minus_t2, 1 / (2 * _TERMS - 1))
    for k in reversed(range(_TERMS - 1)):
        total = total * minus_t2 + 1 / (2 * k + 1)
    return total


def _sie_on_axes(u: Tensor, v: Tensor, theta_E: Number, q: Tensor) -> tuple[Tensor, Tensor]:
    """SIE deflection along its own axes (Kormann et al. 1994; Keeton 2001, eq. 33-34).

    alpha_u = b/f atan(f u/psi), alpha_v = b/f atanh(f v/psi) with psi^2 = q^2 u^2 + v^2, f^2 = 1 - q^2,
    b = theta_E sqrt(q). Both are even, analytic functions of f, so near q = 1 their series is used.
    """
    inverse_psi = torch.rsqrt(_off_centre(q * q * u * u + v * v))
    s, w = u * inverse_psi, v * inverse_psi
    f2 = (1 - q) * (1 + q)
    s2, w2 = s * s, w * w
    t2 = f2 * s2
    near = t2 < _SERIES
    t = t2.masked_fill(near, 1).sqrt()
    atan_ratio = torch.where(near, _series(-t2), t.atan() / t)
    t2 = f2 * w2
    near = t2 < _SERIES
    t = t2.masked_fill(near, 1).sqrt()
    # atanh(t) = asinh(t / sqrt(1 - t^2)), where 1 - t^2 = q^2 r^2/psi^2 holds without cancellation at small q.
    root = q * (s2 + w2).masked_fill(near, 1).sqrt()
    atanh_ratio = torch.where(near, _series(t2), torch.asinh(t / root) / t)
    b = theta_E * q.sqrt()
    return b * s * atan_ratio, b * w * atanh_ratio


def sie(
    x: Tensor, y: Tensor, theta_E: Number, q: Number, phi: Number, x0: Number = 0.0, y0: Number = 0.0
) -> tuple[Tensor, Tensor]:
    """Deflect by a singular isothermal ellipsoid (Kormann et al. 1994; Keeton 2001, eq. 33-34).

    Parameters
    ----------
    x, y : Tensor
        Coordinates in arcsec.
    theta_E : float or Tensor
        Einstein radius in arcsec, above 0, as lenstronomy's EPL has it at gamma = 2: the ellipse of mean convergence 1 has the
        area pi theta_E^2.
    q : float or Tensor
        Axis ratio in (0, 1].
    phi : float or Tensor
        Direction of the major axis in radians from x to y.
    x0, y0 : float or Tensor
        Centre in arcsec.

    Returns
    -------
    alpha_x, alpha_y : Tensor
        Deflection in arcsec, of the broadcast shape.
    """
    dx, dy = _relative(x, y, x0, y0)
    u, v, cos, sin = _axes(dx, dy, phi)
    au, av = _sie_on_axes(u, v, positive("theta_E", theta_E), like(axis_ratio("q", q), u))
    return au * cos - av * sin, au * sin + av * cos


def sie_convergence(
    x: Tensor, y: Tensor, theta_E: Number, q: Number, phi: Number, x0: Number = 0.0, y0: Number = 0.0
) -> Tensor:
    """Compute the convergence of a singular isothermal ellipsoid, kappa = theta_E sqrt(q) / (2 sqrt(q^2 u^2 + v^2)).

    Parameters
    ----------
    x, y, theta_E, q, phi, x0, y0
        As for `sie`; u and v are the coordinates along the major and the minor axis.

    Returns
    -------
    Tensor
        Convergence, of the broadcast shape; zero at the very centre, where it diverges.
    """
    dx, dy = _relative(x, y, x0, y0)
    u, v, _, _ = _axes(dx, dy, phi)
    q = like(axis_ratio("q", q), u)
    return positive("theta_E", theta_E) * q.sqrt() / 2 * torch.rsqrt(_off_centre(q * q * u * u + v * v))


def shear(x: Tensor, y: Tensor, gamma1: Number, gamma2: Number) -> tuple[Tensor, Tensor]:
    """Deflect by an external shear about the origin. It has no convergence.

    Parameters
    ----------
    x, y : Tensor
        Coordinates in arcsec.
    gamma1, gamma2 : float or Tensor
        Components of the shear.

    Returns
    -------
    alpha_x, alpha_y : Tensor
        gamma1 x + gamma2 y and gamma2 x - gamma1 y in arcsec, of the broadcast shape.
    """
    x, y = checks.field("x", x), checks.field("y", y)
    gamma1, gamma2 = parameter("gamma1", gamma1), parameter("gamma2", gamma2)
    return gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y


def point_mass(x: Tensor, y: Tensor, theta_E: Number, x0: Number = 0.0, y0: Number = 0.0) -> tuple[Tensor, Tensor]:
    """Deflect by a point mass: alpha = theta_E^2 (x, y) / r^2.

    Parameters
    ----------
    x, y : Tensor
        Coordinates in arcsec.
    theta_E : float or Tensor
        Einstein radius in arcsec, above 0.
    x0, y0 : float or Tensor
        Place of the mass in arcsec.

    Returns
    -------
    alpha_x, alpha_y : Tensor
        Deflection in arcsec, of the broadcast shape.
    """
    dx, dy = _relative(x, y, x0, y0)
    theta_E = positive("theta_E", theta_E)
    scale = theta_E * theta_E / _off_centre(dx * dx + dy * dy)
    return scale * dx, scale * dy


def point_mass_convergence(x: Tensor, y: Tensor, theta_E: Number, x0: Number, y0: Number, smoothing: Number) -> Tensor:
    """Compute the convergence of a point mass smoothed by a Gaussian; unsmoothed it is a delta function.

    Parameters
    ----------
    x, y : Tensor
        Coordinates in arcsec.
    theta_E : float or Tensor
        Einstein radius in arcsec, above 0.
    x0, y0 : float or Tensor
        Place of the mass in arcsec.
    smoothing : float or Tensor
        Standard deviation of the Gaussian in arcsec, above 0; on a grid at least two pixels.

    Returns
    -------
    Tensor
        Convergence, of the broadcast shape. Its integral is pi theta_E^2.
    """
    dx, dy = _relative(x, y, x0, y0)
    amplitude = positive("theta_E", theta_E) / positive("smoothing", smoothing)
    return amplitude * amplitude / 2 * torch.exp((dx * dx + dy * dy) / (-2 * smoothing * smoothing))


def point_masses(x: Tensor, y: Tensor, theta_E: Tensor, x0: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the deflections of K point masses.

    Memory does not grow with K (under autograd it does). Coordinates given as a row (1, N) and a column (N, 1) spare a third of
    the work.

    Parameters
    ----------
    x, y : Tensor
        Coordinates in arcsec.
    theta_E : Tensor
        Einstein radii in arcsec, the masses along the last axis: theta_E[..., k] broadcasts against x, so that B images of K
        masses on (N, N) coordinates are (B, 1, 1, K). Zero is allowed, as padding of a shorter list.
    x0, y0 : Tensor
        Places of the masses in arcsec, as theta_E.

    Returns
    -------
    alpha_x, alpha_y : Tensor
        Deflection in arcsec, of the broadcast shape without the last axis.
    """
    x, y = checks.field("x", x), checks.field("y", y)
    theta_E, x0, y0 = (
        like(value, x) for value in (parameter("theta_E", theta_E, 0.0), parameter("x0", x0), parameter("y0", y0))
    )
    theta_E, x0, y0 = torch.broadcast_tensors(theta_E, x0, y0)
    masses = theta_E * theta_E
    shape = np.broadcast_shapes(x.shape, y.shape, masses.shape[:-1])
    ax = torch.zeros(shape, dtype=torch.promote_types(x.dtype, masses.dtype), device=x.device)
    ay = torch.zeros_like(ax)
    for mass, centre_x, centre_y in zip(masses.unbind(-1), x0.unbind(-1), y0.unbind(-1)):
        dx, dy = x - centre_x, y - centre_y
        scale = mass / _off_centre(dx * dx + dy * dy)
        ax = ax.addcmul_(scale, dx) if not ax.requires_grad else ax.addcmul(scale, dx)
        ay = ay.addcmul_(scale, dy) if not ay.requires_grad else ay.addcmul(scale, dy)
    return ax, ay


def _rod_axes(
    x: Tensor, y: Tensor, theta_E: Number, half_length: Number, phi: Number, x0: Number, y0: Number
) -> tuple[Tensor, Tensor, Tensor, Tensor, Number, Number]:
    """(u, v, cos, sin) along the rod, L, and theta_E^2 / 2L, the mass per length over pi."""
    dx, dy = _relative(x, y, x0, y0)
    length = positive("half_length", half_length)
    theta_E = positive("theta_E", theta_E)
    return *_axes(dx, dy, phi), length, theta_E * theta_E / (2 * length)


def _rod_angle(u: Tensor, v: Tensor, length: Number) -> Tensor:
    """Angle that the rod subtends at (u, v), signed like v, and zero on the rod: the mean of its jump there."""
    along = u * u + v * v - length * length
    on_rod = (v == 0) & (along <= 0)
    return torch.atan2((2 * length * v).masked_fill(on_rod, 0), along.masked_fill(on_rod, 1))


def rod(
    x: Tensor, y: Tensor, theta_E: Number, half_length: Number, phi: Number, x0: Number = 0.0, y0: Number = 0.0
) -> tuple[Tensor, Tensor]:
    """Deflect by a straight rod of uniform line mass, alpha_u - i alpha_v = theta_E^2 / 2L ln[(z + L) / (z - L)], z = u + i v.

    The component across the rod jumps by pi theta_E^2 / L. On the rod itself it is the mean of both sides, zero.

    Parameters
    ----------
    x, y : Tensor
        Coordinates in arcsec; u and v are those along and across the rod.
    theta_E : float or Tensor
        Einstein radius of the whole mass in arcsec, above 0.
    half_length : float or Tensor
        L in arcsec, above 0.
    phi : float or Tensor
        Direction of the rod in radians from x to y.
    x0, y0 : float or Tensor
        Centre in arcsec.

    Returns
    -------
    alpha_x, alpha_y : Tensor
        Deflection in arcsec, of the broadcast shape.
    """
    u, v, cos, sin, length, scale = _rod_axes(x, y, theta_E, half_length, phi, x0, y0)
    # ln|z+L|/|z-L| is odd in u: taking |u| keeps log1p free of cancellation far away. The sign carries no gradient.
    sign = torch.where(u < 0, -1.0, 1.0).to(u.dtype)
    near = sign * u - length
    r2 = (near * near + v * v).clamp_min(core_squared(u.dtype))
    au = scale / 2 * sign * torch.log1p(4 * length * (sign * u) / r2)
    av = scale * _rod_angle(u, v, length)
    return au * cos - av * sin, au * sin + av * cos


def rod_convergence(
    x: Tensor,
    y: Tensor,
    theta_E: Number,
    half_length: Number,
    phi: Number,
    x0: Number,
    y0: Number,
    smoothing: Number,
) -> Tensor:
    """Compute the convergence of a rod smoothed by a Gaussian; unsmoothed it is a line of infinite density.

    Parameters
    ----------
    x, y, theta_E, half_length, phi, x0, y0
        As for `rod`.
    smoothing : float or Tensor
        Standard deviation of the Gaussian in arcsec, above 0; on a grid at least two pixels.

    Returns
    -------
    Tensor
        Convergence, of the broadcast shape. Its integral is pi theta_E^2.
    """
    u, v, _, _, length, scale = _rod_axes(x, y, theta_E, half_length, phi, x0, y0)
    sigma = positive("smoothing", smoothing)
    across = torch.exp(v * v / (-2 * sigma * sigma)) * (math.sqrt(math.pi / 8) / sigma)
    width = math.sqrt(2) * sigma
    return scale * across * (torch.erf((u + length) / width) - torch.erf((u - length) / width))
