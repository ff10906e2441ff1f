"""Where in the image a decision comes from: integrated gradients (Sundararajan et al. 1703.01365).

The logit of a class against that of another, along the straight line from what a smooth lens would show (no residual, no
significance) to the image; or the plain gradient times the same difference. The channels' absolute values are added up
pixel by pixel.
"""

import torch
from torch import Tensor, nn

from d4lens import lensing
from d4lens.models.batch import LensBatch

_SMOOTHING = 1.0  # pixels: the highest point of single pixels is noise


def maps_read(network: nn.Module) -> tuple[str, ...]:
    """Name the maps of a batch that a network's class is read off: counts where it sees no others.

    Parameters
    ----------
    network : nn.Module
        A network with `needs`.

    Returns
    -------
    tuple of str
        Names of entries of LensBatch, each (B, N, N).
    """
    return tuple(name for name in network.needs if name not in ("counts", "fit")) or ("counts",)  # type: ignore[union-attr]


def attribute(
    network: nn.Module,
    batch: LensBatch,
    smooth: Tensor,
    of_class: Tensor,
    steps: int = 16,
    method: str = "integrated_gradients",
    over: Tensor | None = None,
) -> Tensor:
    """Attribute the logit of a class, over that of another, to the image's pixels.

    Parameters
    ----------
    network : nn.Module
        A network of this package.
    batch : LensBatch
        Images as `network` reads them.
    smooth : Tensor
        (B, N, N) counts of the fitted smooth lens, the baseline of counts. That of the residual and the significance is
        zero.
    of_class : Tensor
        (B,) class indices.
    steps : int
        Points of the midpoint rule.
    method : str
        "integrated_gradients", or "gradient" for the gradient at the image times the difference.
    over : Tensor, optional
        (B,) the other class of each image; None takes `no`.

    Returns
    -------
    Tensor
        (B, N, N) float32, at least 0, smoothed by a pixel.
    """
    names = maps_read(network)
    fixed = {name: value.detach() for name, value in batch.entries().items()}
    start = {name: smooth if name == "counts" else torch.zeros_like(fixed[name]) for name in names}
    way = {name: fixed[name] - start[name] for name in names}
    points = [1.0] if method == "gradient" else [(i + 0.5) / steps for i in range(steps)]
    total = {name: torch.zeros_like(fixed[name]) for name in names}
    other = torch.zeros_like(of_class) if over is None else over
    with torch.enable_grad():
        for t in points:
            leaves = [(start[name] + t * way[name]).detach().requires_grad_() for name in names]
            logits = network(LensBatch(**{**fixed, **dict(zip(names, leaves, strict=True))}))["logits"]
            wanted = (logits.gather(1, of_class[:, None]) - logits.gather(1, other[:, None])).sum()
            for name, gradient in zip(names, torch.autograd.grad(wanted, leaves), strict=True):
                total[name] += gradient / len(points)
    whole = sum(((total[name] * way[name]).abs() for name in names), torch.zeros_like(fixed["counts"]))
    return lensing.convolve_psf(whole.float(), _SMOOTHING).clamp_min(0)
