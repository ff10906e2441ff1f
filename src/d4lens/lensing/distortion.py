"""How the lens stretches the sky: A = d beta / d theta = 1 - d alpha / d theta, and the magnification 1 / det A."""

from collections.abc import Callable

import torch
from torch import Tensor

from d4lens.errors import PhysicsError
from d4lens.lensing import checks
from d4lens.lensing.checks import Number, positive

Deflection = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

MAX_MAGNIFICATION = 1e6
"""On a critical curve the magnification of a point diverges; it is held at this, with the sign of det A."""


def _assemble(xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor) -> Tensor:
    rows = torch.stack((1 - xx, -xy), -1), torch.stack((-yx, 1 - yy), -1)
    return torch.stack(rows, -2)


def jacobian(deflection: Deflection, x: Tensor, y: Tensor) -> Tensor:
    """Compute A[..., i, j] = d beta_i / d theta_j at points, by forward-mode differentiation.

    Parameters
    ----------
    deflection : callable
        (x, y) -> (alpha_x, alpha_y), point by point, as `lambda x, y: sie(x, y, ...)`. A gridded field goes to
        `jacobian_from_field`.
    x, y : Tensor
        Points (...) in arcsec, floating-point. PhysicsError otherwise.

    Returns
    -------
    Tensor
        (..., 2, 2).
    """
    x, y = torch.broadcast_tensors(checks.field("x", x), checks.field("y", y))
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    xx, yx = torch.func.jvp(deflection, (x, y), (one, zero))[1]
    xy, yy = torch.func.jvp(deflection, (x, y), (zero, one))[1]
    return _assemble(xx, xy, yx, yy)


def _derivative(field: Tensor, dim: int, h: Number) -> Tensor:
    """Differentiate along `dim`: central differences, of fourth order two pixels away from the edge."""
    n = field.shape[dim]

    def part(start: int, length: int) -> Tensor:
        return field.narrow(dim, start, length)

    inner = (8 * (part(3, n - 4) - part(1, n - 4)) - (part(4, n - 4) - part(0, n - 4))) / 12
    second, before_last = (part(2, 1) - part(0, 1)) / 2, (part(n - 1, 1) - part(n - 3, 1)) / 2
    first = (4 * part(1, 1) - 3 * part(0, 1) - part(2, 1)) / 2
    last = (3 * part(n - 1, 1) - 4 * part(n - 2, 1) + part(n - 3, 1)) / 2
    return torch.cat((first, second, inner, before_last, last), dim) / h


def jacobian_from_field(alpha_x: Tensor, alpha_y: Tensor, pixel_scale: Number) -> Tensor:
    """Compute A of a gridded deflection, by finite differences of fourth order (of second on the two outermost pixels).

    Parameters
    ----------
    alpha_x, alpha_y : Tensor
        Deflection in arcsec, each (..., N, M), rows along y, sides of at least 8.
    pixel_scale : float or Tensor
        Arcsec per pixel, above 0.

    Returns
    -------
    Tensor
        (..., N, M, 2, 2).

    Raises
    ------
    PhysicsError
        If the fields differ in size or are too small, or the scale is not positive.
    """
    alpha_x, alpha_y = checks.field("alpha_x", alpha_x, 2), checks.field("alpha_y", alpha_y, 2)
    if alpha_x.shape[-2:] != alpha_y.shape[-2:]:
        raise PhysicsError(f"alpha_y must have the sides of alpha_x {tuple(alpha_x.shape)}, not {tuple(alpha_y.shape)}")
    for side in alpha_x.shape[-2:]:
        checks.size("side of alpha_x", side)
    h = positive("pixel_scale", pixel_scale)
    return _assemble(
        _derivative(alpha_x, -1, h),
        _derivative(alpha_x, -2, h),
        _derivative(alpha_y, -1, h),
        _derivative(alpha_y, -2, h),
    )


def determinant(matrix: Tensor) -> Tensor:
    """Return the determinant (...) of matrices (..., 2, 2).

    Parameters
    ----------
    matrix : Tensor
        (..., 2, 2).

    Returns
    -------
    Tensor
        (...).
    """
    return matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]


def _magnification(matrix: Tensor) -> Tensor:
    det = determinant(matrix)
    smallest = 1 / MAX_MAGNIFICATION
    critical = det.abs() < smallest
    return torch.where(det < 0, -1.0, 1.0).to(det.dtype) / det.abs().masked_fill(critical, smallest)


def magnification(deflection: Deflection, x: Tensor, y: Tensor) -> Tensor:
    """Compute the signed magnification 1 / det A at points, negative inside a tangential critical curve.

    Parameters
    ----------
    deflection, x, y
        As for `jacobian`.

    Returns
    -------
    Tensor
        (...). On a critical curve, where it diverges, it is held at +-1e6, with zero gradient.
    """
    return _magnification(jacobian(deflection, x, y))


def magnification_from_field(alpha_x: Tensor, alpha_y: Tensor, pixel_scale: Number) -> Tensor:
    """Compute the signed magnification of a gridded deflection.

    Parameters
    ----------
    alpha_x, alpha_y, pixel_scale
        As for `jacobian_from_field`.

    Returns
    -------
    Tensor
        (..., N, M), held at +-1e6 as `magnification` is.
    """
    return _magnification(jacobian_from_field(alpha_x, alpha_y, pixel_scale))
