"""What a fit minimises: the Poisson deviance of counts given the smooth lens, and the priors.

Deviance 2 sum[(m - k) - k ln(m/k)], score and curvature by Fisher's scoring: residuals and derivatives over sqrt(m),
the model's own standard deviation. Weights from the counts themselves would pull the model down by a count in the mean,
and a chi-square with weights from the model would push it up by half a count; the likelihood does neither.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from d4lens.macrofit.levenberg import Evaluate
from d4lens.macrofit.smooth_lens import SmoothLensModel

_GROUP = 8  # images computed together on a CPU: always so many, so that no image's bytes depend on its company
_ALIGN = 64  # pixels: every image's numbers start on the same boundary, for the same reason


def objective(counts: Tensor, model: SmoothLensModel) -> Evaluate:
    """Return the function that `minimise` takes: the Poisson deviance of counts, with the priors.

    Counts may be negative: the deviance is then the quasi-likelihood's, up to a constant.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) on the model's device and in its dtype. Those that are not finite carry no weight.
    model : SmoothLensModel
        Its free parameters are the function's.

    Returns
    -------
    callable
        As `minimise` takes it.
    """
    pixels, n_free = model.n_pixels**2, len(model.free)
    flat = counts.reshape(len(counts), pixels)
    seen = torch.isfinite(flat)
    flat = flat.where(seen, 0.0)
    seen = seen.to(flat.dtype)
    centre, precision = (
        torch.tensor(values, dtype=torch.float64)
        for values in zip(*((prior.mean, prior.sigma**-2) for prior in map(model.priors.__getitem__, model.free)))
    )

    def group(rows: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        k, weight = (part[rows.to(flat.device)] for part in (flat, seen))
        out = model.image_and_jacobian(parameters).view(len(k), 1 + n_free, pixels)
        expected = out[:, 0]
        terms = k * torch.log((k / expected).abs_().clamp_min_(1e-30)) + (expected - k)
        deviance = 2 * terms.mul_(weight).sum(1, dtype=torch.float64)
        root = expected.rsqrt().mul_(weight)
        whitened = out.new_zeros((len(k), 1 + n_free, -(-pixels // _ALIGN) * _ALIGN))
        torch.mul(k - expected, root, out=whitened[:, 0, :pixels])
        torch.mul(out[:, 1:], root[:, None], out=whitened[:, 1:, :pixels])
        return deviance, whitened @ whitened.mT

    def evaluate(rows: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        deviance, gram = in_groups(group, model, rows, parameters)
        deviance, gram = deviance.cpu(), gram.to("cpu", torch.float64)
        away = parameters - centre
        return (
            deviance + (away * away * precision).sum(1),
            gram[:, 1:, 0] - away * precision,
            gram[:, 1:, 1:] + torch.diag(precision),
        )

    return evaluate


def in_groups(
    function: Callable[..., tuple[Tensor, ...]], model: SmoothLensModel, *arguments: Tensor
) -> tuple[Tensor, ...]:
    """Apply a function to the arguments' rows, a few at a time.

    On a CPU they are always the same few, the last one repeated: eight, or `model.group` where a model says so.

    Parameters
    ----------
    function : callable
        Of rows of the arguments; it returns tensors with as many rows.
    model : SmoothLensModel
        Its device.
    *arguments : Tensor
        (B, ...) each.

    Returns
    -------
    tuple of Tensor
        (B, ...) each.
    """
    n = len(arguments[0])
    size = getattr(model, "group", _GROUP) if model.device.type == "cpu" else max(n, 1)
    parts = []
    for first in range(0, n, size):
        take = torch.arange(first, first + size).clamp_max(n - 1)
        parts.append([part[: n - first] for part in function(*(argument[take] for argument in arguments))])
    return tuple(torch.cat(column) for column in zip(*parts))


def covariance(curvature: Tensor) -> Tensor:
    """Invert the Fisher information.

    Parameters
    ----------
    curvature : Tensor
        (B, F, F).

    Returns
    -------
    Tensor
        (B, F, F), infinite throughout where there is no inverse.
    """
    scale = torch.diagonal(curvature, dim1=1, dim2=2).sqrt()
    usable = torch.isfinite(curvature).all(2).all(1) & (scale > 0).all(1)
    scale = scale.where(usable[:, None], 1.0)
    outer = scale[:, :, None] * scale[:, None, :]
    unit = torch.eye(curvature.shape[1], dtype=curvature.dtype)
    inverse, failed = torch.linalg.inv_ex(torch.where(usable[:, None, None], curvature / outer, unit))
    return torch.where((usable & (failed == 0))[:, None, None], inverse / outer, math.inf)
