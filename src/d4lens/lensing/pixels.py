"""The coordinates of an image's pixels."""

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
    """Return the coordinates of the pixel centres of a square image.

    Rows run along y, columns along x, and the array's centre is (0, 0): x = (j - (N - 1) / 2) h and y = (i - (N - 1) / 2) h for
    row i, column j and h = `pixel_scale`.

    Parameters
    ----------
    n_pixels : int
        Pixels a side N, at least 8.
    pixel_scale : float
        h in arcsec, above 0.
    dtype : torch.dtype, optional
        A floating-point type; torch's default if None.
    device : torch.device or str, optional
        Where the coordinates lie.

    Returns
    -------
    x, y : Tensor
        Coordinates in arcsec, each (N, N).

    Raises
    ------
    PhysicsError
        If the size, the scale or the dtype is out of range.
    """
    n = checks.size("n_pixels", n_pixels)
    h = checks.positive("pixel_scale", pixel_scale)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise PhysicsError(f"dtype must be a floating-point type, not {dtype}")
    # Whole and half numbers are exact, so the axis is antisymmetric to the last bit.
    axis = (torch.arange(n, dtype=dtype, device=device) - (n - 1) / 2) * h
    return axis.expand(n, n).contiguous(), axis[:, None].expand(n, n).contiguous()
