"""Where the pixels are, and what a pixel's area averages."""

from collections.abc import Callable

import torch
from torch import Tensor

from d4lens.errors import PhysicsError
from d4lens.lensing import checks


def grid(
    n_pixels: int,
    pixel_scale: float,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixel centres of a square image, in arcsec.

    Rows run along y, columns along x, the array's centre is (0, 0):
    x = (j - (N - 1) / 2) h and y = (i - (N - 1) / 2) h for row i, column j and h = `pixel_scale`.

    Returns (x, y), each (N, N), in `dtype` (torch's default if None).
    Raises PhysicsError if N < 8, h <= 0 or the dtype is not floating-point.
    """
    n = checks.size("n_pixels", n_pixels)
    h = checks.positive("pixel_scale", pixel_scale)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise PhysicsError(f"dtype must be a floating-point type, not {dtype}")
    # Whole and half numbers are exact, so the axis is antisymmetric to the last bit.
    axis = (torch.arange(n, dtype=dtype, device=device) - (n - 1) / 2) * h
    return axis.expand(n, n).contiguous(), axis[:, None].expand(n, n).contiguous()


def bin_mean(image: Tensor, factor: int) -> Tensor:
    """Mean over blocks of `factor` x `factor` pixels: (..., N f, M f) to (..., N, M).

    Raises PhysicsError where the sides are not multiples of `factor`.
    """
    f = checks.size("factor", factor, at_least=1)
    image = checks.field("image", image, 2)
    rows, columns = image.shape[-2:]
    if rows % f or columns % f:
        raise PhysicsError(f"image must have sides that are multiples of factor {f}, not {rows} x {columns}")
    return image.unflatten(-1, (columns // f, f)).unflatten(-3, (rows // f, f)).mean(dim=(-1, -3))


def supersample(
    function: Callable[[Tensor, Tensor], Tensor],
    n_pixels: int,
    pixel_scale: float,
    factor: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Pixel averages of `function(x, y)` (arcsec), by the midpoint rule on `factor` x `factor` points a pixel.

    `function` is called once, with coordinates (N f, N f), and may return leading axes: (..., N f, N f).
    Returns (..., N, N). Raises PhysicsError as `grid` does, or if factor < 1.
    """
    n = checks.size("n_pixels", n_pixels)
    f = checks.size("factor", factor, at_least=1)
    checks.positive("pixel_scale", pixel_scale)
    x, y = grid(n * f, pixel_scale / f, dtype, device)
    return bin_mean(function(x, y), f)
