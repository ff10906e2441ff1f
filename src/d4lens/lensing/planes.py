"""From the source plane to the image plane and back. Surface brightness is conserved: I(theta) = S(beta), beta = theta - alpha.

A source grid of n pixels a side covers [-half_width, half_width]^2 arcsec with pixel centres at
`grid(n, 2 half_width / n)`. A ray at beta sees the source by bilinear interpolation, with nothing beyond the outermost
pixel centres but the ramp to zero one pixel outside (as `grid_sample` with zeros and align_corners=False does).
`to_image_plane` is that interpolation L; the unnormalised `to_source_plane` is its exact adjoint.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from d4lens.errors import PhysicsError
from d4lens.lensing import checks
from d4lens.lensing.checks import Number, parameter, positive


def _corners(beta: Tensor, n: int, half_width: Number) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the lower pixel on a grid with one ring of padding, 0..n, and the weights of it and the next one.

    Rays outside land on the ring. Positions are counted from the grid's centre and each weight is a difference of its
    own, so mirrored rays get mirrored weights to the last bit. The index carries no gradient; the weights do.
    """
    half = (n - 1) / 2
    position = (beta * (n / (2 * half_width))).clamp(-half - 1, half + 1)
    centred = half % 1  # pixel centres lie on whole numbers for odd n, between them for even n
    lower = (torch.floor(position.detach() - centred) + centred).clamp(-half - 1, half)
    # A NaN ray becomes a NaN weight at a valid index. The bounds catch the rounding of `position - centred`.
    index = (lower + (half + 1)).long().clamp(0, n)
    return index, ((lower + 1) - position).clamp(0, 1), (position - lower).clamp(0, 1)


def _bilinear(beta_x: Tensor, beta_y: Tensor, n: int, half_width: Number) -> list[tuple[Tensor, Tensor]]:
    """Return the four (flat index on the padded grid, weight) of every ray, each of the rays' shape (..., P)."""
    j, left, right = _corners(beta_x.flatten(-2), n, half_width)
    i, down, up = _corners(beta_y.flatten(-2), n, half_width)
    width = n + 2
    index = i * width + j
    return [
        (index, down * left),
        (index + 1, down * right),
        (index + width, up * left),
        (index + width + 1, up * right),
    ]


def _gather(source: Tensor, corners: list[tuple[Tensor, Tensor]]) -> Tensor:
    """See a source (..., n, n) along the rays (..., P)."""
    flat = pad(source, (1, 1, 1, 1)).flatten(-2)
    lead = np.broadcast_shapes(flat.shape[:-1], corners[0][0].shape[:-1])
    flat = flat.expand(*lead, -1)
    return sum(flat.gather(-1, index.expand(*lead, -1)) * weight for index, weight in corners)  # type: ignore[return-value]


def _scatter(values: Tensor | None, corners: list[tuple[Tensor, Tensor]], n: int) -> Tensor:
    """Apply the adjoint of `_gather`: values (..., P), or ones, to (..., n, n)."""
    weights = corners[0][1]
    shape = weights.shape if values is None else np.broadcast_shapes(values.shape, weights.shape)
    dtype = weights.dtype if values is None else torch.promote_types(values.dtype, weights.dtype)
    total = torch.zeros(*shape[:-1], (n + 2) ** 2, dtype=dtype, device=weights.device)
    for index, weight in corners:
        part = weight if values is None else weight * values
        total = total.scatter_add(-1, index.expand(shape), part.to(dtype).expand(shape))
    padded: Tensor = total.unflatten(-1, (n + 2, n + 2))
    return padded[..., 1:-1, 1:-1]


def _rays(beta_x: Tensor, beta_y: Tensor, half_width: Number) -> tuple[Tensor, Tensor, Number]:
    beta_x, beta_y = torch.broadcast_tensors(checks.field("beta_x", beta_x, 2), checks.field("beta_y", beta_y, 2))
    return beta_x, beta_y, positive("half_width", half_width)


def _plane(name: str, plane: Tensor, beta: Tensor) -> Tensor:
    """Check that an image (..., H, W) has the pixels of the rays."""
    plane = checks.field(name, plane, 2)
    if plane.shape[-2:] != beta.shape[-2:]:
        raise PhysicsError(f"{name} must have the rays' {tuple(beta.shape[-2:])} pixels, not {tuple(plane.shape[-2:])}")
    return plane


def _side(source: Tensor) -> int:
    if source.shape[-1] != source.shape[-2]:
        raise PhysicsError(f"source must be square (…, n, n), not shape {tuple(source.shape)}")
    return checks.size("source's side", source.shape[-1])


def to_image_plane(source: Tensor, beta_x: Tensor, beta_y: Tensor, half_width: Number) -> Tensor:
    """Lens a source: see it along the rays of an image's pixels.

    Leading axes broadcast. Gradients reach the source and, through the interpolation weights, the rays.

    Parameters
    ----------
    source : Tensor
        Surface brightness (..., n, n), n at least 8.
    beta_x, beta_y : Tensor
        Where the rays meet the source plane in arcsec, each (..., H, W).
    half_width : float or Tensor
        Half the side of the source grid in arcsec, above 0.

    Returns
    -------
    Tensor
        Surface brightness (..., H, W).

    Raises
    ------
    PhysicsError
        If the half width is not positive, or the source is not square, too small or integer.
    """
    source = checks.field("source", source, 2)
    beta_x, beta_y, half_width = _rays(beta_x, beta_y, half_width)
    corners = _bilinear(beta_x, beta_y, _side(source), half_width)
    image: Tensor = _gather(source, corners).unflatten(-1, beta_x.shape[-2:])
    return image


def to_source_plane(
    image: Tensor,
    beta_x: Tensor,
    beta_y: Tensor,
    n_pixels: int,
    half_width: Number,
    weights: Tensor | None = None,
    normalise: bool = True,
    min_coverage: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Trace an image back to its source, by a bilinear splat.

    S_j = sum_i w_ij m_i I_i / sum_i w_ij m_i with bilinear weights w. Gradients reach image, weights and rays. A CPU gives the same
    bytes at every run. On a GPU, sums of atomics differ in the last bits unless torch is set to be deterministic.

    Parameters
    ----------
    image : Tensor
        Surface brightness I (..., H, W).
    beta_x, beta_y : Tensor
        Where the rays meet the source plane in arcsec, each (..., H, W).
    n_pixels : int
        Side n of the source grid, at least 8.
    half_width : float or Tensor
        Half the side of the source grid in arcsec, above 0.
    weights : Tensor, optional
        m (..., H, W), at least 0; 1 if None. |det A| weighs each ray by the source area of its pixel, an inverse variance by its
        precision.
    normalise : bool
        False for the sum alone, sum_i w_ij m_i I_i: exactly the adjoint of `to_image_plane` for m = 1, and the flux that lands on
        each source pixel for m = |det A|.
    min_coverage : float
        Source pixels whose coverage is not above this are set to zero. A small one, such as 1e-2, bounds the gradient of the
        quotient at the rim of the coverage while the rays are learnt.

    Returns
    -------
    source : Tensor
        (..., n, n), zero where no ray lands.
    coverage : Tensor
        sum_i w_ij m_i, (..., n, n).

    Raises
    ------
    PhysicsError
        If a size is out of range, a weight negative or an input integer.
    """
    n = checks.size("n_pixels", n_pixels)
    beta_x, beta_y, half_width = _rays(beta_x, beta_y, half_width)
    image = _plane("image", image, beta_x)
    parameter("min_coverage", min_coverage, 0.0)
    corners = _bilinear(beta_x, beta_y, n, half_width)
    pixels = image.flatten(-2)
    if weights is not None:
        weights = _plane("weights", weights, beta_x).flatten(-2)
        pixels = pixels * parameter("weights", weights, 0.0)
    source = _scatter(pixels, corners, n)
    coverage = _scatter(weights, corners, n)
    if normalise:
        empty = coverage <= min_coverage
        source = (source / coverage.masked_fill(empty, 1)).masked_fill(empty, 0)
    return source, coverage.expand(source.shape)
