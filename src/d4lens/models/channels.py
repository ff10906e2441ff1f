"""The named channels a network may be given of an image, each a scalar under D4 and of order one.

stretch   Anscombe's root 2 sqrt(k + 3/8) (Anscombe 1948), zero at the mean sky, over ten: the noise is 0.1 everywhere.
log       ln(1 + counts above the sky over sky): the arc's whole dynamic range, faint outskirts included.
gradient  length of the stretch's gradient by central differences: edges of the arc, where substructure shows first.
sobel     Sobel's gradient of `log`, times the image over its brightest pixel: the published preprocessing.
residual  (counts - smooth lens) / sigma, clipped at +-20 so that one bad fit cannot drown a batch.
significance  arsinh of the standard deviations by which one more mass at each place would explain the residual: linear
          in the noise, logarithmic in the brightest peaks.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from d4lens.errors import D4LensError
from d4lens.models.batch import LensBatch

_CLIP = 20.0


def channel(name: str, batch: LensBatch, sky: float) -> Tensor:
    """Compute one channel of a batch.

    Parameters
    ----------
    name : str
        One of the channels above.
    batch : LensBatch
        Images with the maps that the channel is read off.
    sky : float
        Mean sky in counts per pixel.

    Returns
    -------
    Tensor
        (B, N, N), without unit.

    Raises
    ------
    D4LensError
        For an unknown name, or a batch without the map.
    """
    counts = batch.counts
    if name == "stretch":
        return _anscombe(counts, sky)
    if name == "log":
        return torch.log1p((counts - sky).clamp_min(0) / max(sky, 1.0))
    if name == "gradient":
        around = F.pad(_anscombe(counts, sky)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        across = (around[..., 1:-1, 2:] - around[..., 1:-1, :-2]) / 2
        down = (around[..., 2:, 1:-1] - around[..., :-2, 1:-1]) / 2
        # The small constant keeps the derivative finite where the image is flat.
        return torch.sqrt(across**2 + down**2 + 1e-12)
    if name == "sobel":
        signal = (counts - sky).clamp_min(0)
        around = F.pad(channel("log", batch, sky)[:, None], (1, 1, 1, 1), mode="replicate")
        kernel = counts.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        across, down = F.conv2d(around, torch.stack([kernel, kernel.T])[:, None]).unbind(1)
        return torch.hypot(across, down) * signal / signal.amax((-2, -1), keepdim=True).clamp_min(1.0)
    if name == "residual":
        return batch.need("residual").clamp(-_CLIP, _CLIP)
    if name == "significance":
        return torch.asinh(batch.need("significance"))
    raise D4LensError(f"unknown channel {name!r}; choose among stretch, log, gradient, sobel, residual, significance")


def stack(names: Sequence[str], batch: LensBatch, sky: float) -> Tensor:
    """Stack channels side by side.

    Parameters
    ----------
    names : sequence of str
        As `channel` takes them.
    batch : LensBatch
        B images of (N, N) pixels.
    sky : float
        Mean sky in counts per pixel.

    Returns
    -------
    Tensor
        (B, len(names), N, N).
    """
    return torch.stack([channel(name, batch, sky) for name in names], 1)


def needs_of(channels: Sequence[str]) -> tuple[str, ...]:
    """Name the entries that a batch must hold for these channels.

    Parameters
    ----------
    channels : sequence of str
        Names of channels.

    Returns
    -------
    tuple of str
        Names of entries of LensBatch.
    """
    return ("counts", *(name for name in ("residual", "significance") if name in channels))


def _anscombe(counts: Tensor, sky: float) -> Tensor:
    stretched: Tensor = (torch.sqrt(counts.clamp_min(0) + 0.375) - (sky + 0.375) ** 0.5) / 5
    return stretched
