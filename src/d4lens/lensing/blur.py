"""The Gaussian point spread function, as two matrix products: exact boundaries, any sigma per image, differentiable."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from d4lens.lensing import checks
from d4lens.lensing.checks import Number, like, positive

_BEYOND = 64
"""Pixels beyond the image's side that the kernel reaches, so that its normalisation and tails are complete."""


def _taps(sigma: Tensor, radius: int) -> Tensor:
    """Normalised samples of a Gaussian of `sigma` (...) pixels at -radius..radius: (..., 2 radius + 1)."""
    offsets = torch.arange(-radius, radius + 1, dtype=sigma.dtype, device=sigma.device)
    taps = torch.exp(-0.5 * (offsets / sigma[..., None]) ** 2)
    return taps / taps.sum(-1, keepdim=True)


def gaussian_psf(sigma_pixels: float, dtype: torch.dtype | None = None) -> Tensor:
    """Return the normalised Gaussian kernel, sampled at pixel centres out to 6 sigma.

    Parameters
    ----------
    sigma_pixels : float
        Standard deviation in pixels, above 0. PhysicsError otherwise.
    dtype : torch.dtype, optional
        torch's default if None.

    Returns
    -------
    Tensor
        (K, K), K odd.
    """
    sigma = torch.as_tensor(positive("sigma_pixels", sigma_pixels), dtype=torch.float64)
    taps = _taps(sigma, math.ceil(6 * sigma.item()))
    return (taps[:, None] * taps).to(torch.get_default_dtype() if dtype is None else dtype)


def _matrix(sigma: Tensor, n: int) -> Tensor:
    """Return the 1-D convolution of n pixels as a matrix (..., n, n) for sigma (...)."""
    radius = n + _BEYOND
    taps = _taps(sigma, radius)
    pixel = torch.arange(n, device=sigma.device)
    matrix = taps[..., pixel - pixel[:, None] + radius]
    # What reaches pixel i from beyond either edge has the edge pixel's value.
    below = taps.cumsum(-1)[..., radius - 1 - pixel]
    above = below.flip(-1)
    return matrix + pad(below[..., None], (0, n - 1)) + pad(above[..., None], (n - 1, 0))


def convolve_psf(image: Tensor, sigma_pixels: Number) -> Tensor:
    """Convolve an image with a Gaussian PSF, sampled at pixel centres.

    Beyond the edge the image goes on as its edge pixels, so that a flat sky stays flat (scipy's and lenstronomy's choice).
    Computed in float32 at least, also under autocast. Gradients reach both arguments.

    Parameters
    ----------
    image : Tensor
        (..., N, M), floating-point.
    sigma_pixels : float or Tensor
        Standard deviation in pixels, above 0; broadcasts against the leading axes (...).

    Returns
    -------
    Tensor
        (..., N, M), of the image's dtype.

    Raises
    ------
    PhysicsError
        If a value is out of range or the image integer.
    """
    image = checks.field("image", image, 2)
    sigma = positive("sigma_pixels", sigma_pixels)
    dtype = torch.promote_types(image.dtype, torch.float32)
    rows, columns = image.shape[-2:]
    with torch.autocast(image.device.type, enabled=False):
        sigma = like(sigma, image).to(image.device, dtype)
        down = _matrix(sigma, rows)
        across = down if rows == columns else _matrix(sigma, columns)
        return (down @ image.to(dtype) @ across.mT).to(image.dtype)
