"""Where in the image one more mass would explain the residual: a matched filter, with nothing to train.

To first order a deflection delta-alpha shifts the source as a change of its position does, so a point mass of squared
Einstein radius s at p changes the counts m of the smooth lens by

    s t_p(theta),    t_p = dm/d(source_x) a_x(theta - p) + dm/d(source_y) a_y(theta - p),    a(d) = d / (|d|^2 + h^2),

h one pixel, where no pixelated image tells a point from a blur. What the smooth lens could have absorbed of t_p is taken
out (its parameters are profiled: t_p made orthogonal to their derivatives under Poisson weights), and the maximum of
the likelihood over s, under a Gaussian prior of the width below, lies S = (t . r) / sqrt(t . t + 1 / width^2) standard
deviations from none. S^2 is the chi-squared gained. All places at once cost a few FFTs an image. Compare the linear
gravitational imaging of Koopmans (2005) and Vegetti & Koopmans (2009), which invert for the potential instead.
"""

from functools import lru_cache

import torch
from torch import Tensor

from d4lens.macrofit.smooth_lens import SmoothLensModel
from d4lens.macrofit.threads import in_threads

PRIOR_WIDTH = 0.05
"""arcsec^2: three times the squared Einstein radius of a mass of a hundredth of the halo; it keeps S at zero where the
source's light says nothing."""


def significance_maps(counts: Tensor, parameters: Tensor, model: SmoothLensModel) -> Tensor:
    """Compute the signed significance of one more point mass at each pixel's centre.

    Noise alone gives values of standard deviation 1 where the source's light reaches, a mass a positive peak, a hole a
    negative one. The map is a scalar under D4. Pixels whose counts are not finite carry no weight; a mass behind them shows
    in those around. The map of an image is the same to the bit whatever the others are.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) photons per pixel of `model`.
    parameters : Tensor
        (B, F) the best fit, in the order of `model.free`.
    model : SmoothLensModel
        Its free parameters hold source_x and source_y.

    Returns
    -------
    Tensor
        (B, N, N) float32, in standard deviations.
    """
    kernels = kernels_of(model)
    threads = torch.get_num_threads() if model.device.type == "cpu" else 1
    rows = list(zip(counts, parameters, strict=True))
    found = in_threads(lambda row: _one(*row, model, kernels), rows, threads)
    return torch.stack(found) if found else torch.empty((0, model.n_pixels, model.n_pixels))


class Kernels:
    """Fourier transforms of a unit mass's deflection and of its products on a grid of twice the image's side: nothing wraps.

    A pixel softens the profile, since no pixelated image tells a point from a blur.

    Parameters
    ----------
    n_pixels : int
        Side N of the image.
    step : float
        arcsec per pixel.
    profile : str
        Of the mass: "point", whose deflection goes as 1/r, or "sis", whose is constant.
    device : torch.device or str
        Where they are.
    """

    def __init__(self, n_pixels: int, step: float, profile: str = "point", device: torch.device | str = "cpu") -> None:
        self.n, self.planes = n_pixels, _planes(2 * n_pixels, step, profile).to(device)

    def correlate(self, fields: Tensor, planes: slice) -> Tensor:
        """Sum fields correlated with as many kernels.

        Parameters
        ----------
        fields : Tensor
            (..., k, N, N).
        planes : slice
            Which k kernels.

        Returns
        -------
        Tensor
            (..., N, N).
        """
        size = (2 * self.n, 2 * self.n)
        spectrum = (torch.fft.rfft2(fields, s=size) * self.planes[planes]).sum(-3)
        correlated: Tensor = torch.fft.irfft2(spectrum, s=size)
        return correlated[..., : self.n, : self.n]


def kernels_of(model: SmoothLensModel) -> Kernels:
    """Return the kernels of a point mass on a model's pixels.

    Parameters
    ----------
    model : SmoothLensModel
        The model.

    Returns
    -------
    Kernels
        The kernels.
    """
    return Kernels(model.n_pixels, model.observation.pixel_scale * model.binning, device=model.device)


@lru_cache(maxsize=32)
def _planes(side: int, step: float, profile: str) -> Tensor:
    """Return transforms (5, side, side // 2 + 1) of a_x and a_y, and of a_x², 2 a_x a_y and a_y²."""
    at = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64) * step
    y, x = torch.meshgrid(at, at, indexing="ij")
    squared = x * x + y * y + step * step
    below = squared if profile == "point" else squared.sqrt()
    a_x, a_y = x / below, y / below
    planes = torch.stack([a_x, a_y, a_x * a_x, 2 * a_x * a_y, a_y * a_y])
    # Conjugated: sums over theta of f(theta) a(theta - p) are correlations.
    transformed: Tensor = torch.fft.rfft2(planes).conj().to(torch.complex64)
    return transformed


def _one(counts: Tensor, parameters: Tensor, model: SmoothLensModel, kernels: Kernels) -> Tensor:
    stack = model.image_and_jacobian(parameters[None])[0].float()
    counts = counts.to(model.device, torch.float32)
    seen = torch.isfinite(counts)
    expected, slopes = stack[0], stack[1:] * seen
    misfit = torch.where(seen, counts - expected, torch.zeros_like(expected)) / expected
    shift = slopes[[model.free.index("source_x"), model.free.index("source_y")]]
    explained = kernels.correlate(misfit * shift, slice(0, 2))
    squares = torch.stack([shift[0] * shift[0], shift[0] * shift[1], shift[1] * shift[1]]) / expected
    information = kernels.correlate(squares, slice(2, 5))
    overlap = kernels.correlate((slopes / expected)[:, None] * shift, slice(0, 2)).flatten(1).double()
    flat = slopes.flatten(1).double()
    fisher = (flat / expected.flatten().double()) @ flat.T
    scale = fisher.diagonal().clamp_min(1e-30).sqrt()
    fisher = fisher / (scale[:, None] * scale) + 1e-9 * torch.eye(len(scale), dtype=torch.float64, device=fisher.device)
    overlap = overlap / scale[:, None]
    gradient = (flat @ misfit.flatten().double()) / scale
    absorbed = torch.linalg.solve(fisher, torch.cat([overlap, gradient[:, None]], 1))
    information = information.flatten().double() - (overlap * absorbed[:, :-1]).sum(0)
    explained = explained.flatten().double() - overlap.T @ absorbed[:, -1]
    found: Tensor = explained / (information.clamp_min(0) + PRIOR_WIDTH**-2).sqrt()
    return found.reshape(counts.shape).float().cpu()
