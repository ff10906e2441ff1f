"""Counts known up to the faintest pixel's: the smooth lens says how many that has."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from d4lens.macrofit.fitting import FitResult, fit_smooth_lens
from d4lens.macrofit.smooth_lens import SmoothLensModel

_DOUBT = 0.25  # counts a native pixel; of a true model the light that is left over is a tenth of that
_TRIES = 6


def fit_faintest(
    counts: Tensor,
    model: SmoothLensModel,
    lifts: Sequence[NDArray[Any] | None],
    skies: Sequence[float],
    **options: Any,
) -> tuple[Tensor, FitResult, list[int]]:
    """Fit images whose counts are known up to a whole number in every native pixel, and find that number.

    The number taken is the one that brings the sky under the model's light nearest to the known one.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) photons.
    model : SmoothLensModel
        What is fitted.
    lifts : sequence of numpy.ndarray or None
        For each image (N, N) by how much a count more in every native pixel raises it, 0 where there are no data; None where
        counts are known.
    skies : sequence of float
        For each image the known mean of its sky, photons in a pixel of the grid.
    **options
        Of `fit_smooth_lens`.

    Returns
    -------
    counts : Tensor
        (B, N, N), as raised.
    result : FitResult
        Their fit.
    raised : list of int
        By how much each image was raised.
    """
    result = fit_smooth_lens(counts, model, **options)
    raised = [0] * len(counts)
    doubtful = [i for i, lift in enumerate(lifts) if lift is not None]
    if not doubtful:
        return counts, result, raised
    counts = counts.clone()
    lift = torch.zeros(counts.shape, dtype=torch.float64)
    for i in doubtful:
        lift[i] = torch.from_numpy(lifts[i])
    rows, sky = torch.tensor(doubtful), torch.tensor(skies, dtype=torch.float64)
    tried = {i: {0} for i in doubtful}
    for _ in range(_TRIES):
        missing = _missing(counts[rows], result.rows(rows), model, lift[rows], sky[rows])
        # Towards the whole number that is missing, or the neighbour where a part of one is.
        steps = [int(math.copysign(max(1, round(abs(by))), by)) if abs(by) > _DOUBT else 0 for by in missing.tolist()]
        tries = [raised[i] + by not in tried[i] for i, by in zip(rows.tolist(), steps, strict=True)]
        new = torch.tensor(tries)
        if not any(tries):
            break
        rows, step = rows[new], torch.tensor(steps)[new]
        other = counts[rows] + (step[:, None, None] * lift[rows]).to(counts.dtype)
        again = fit_smooth_lens(other, model, **options)
        better = _missing(other, again, model, lift[rows], sky[rows]).abs() < missing[new].abs()
        for i, by in zip(rows.tolist(), step.tolist(), strict=True):
            tried[i].add(raised[i] + by)
        rows, step = rows[better], step[better]
        counts[rows] = other[better]
        for field in fields(FitResult):
            getattr(result, field.name)[rows] = getattr(again, field.name)[better]
        for i, by in zip(rows.tolist(), step.tolist(), strict=True):
            raised[i] += by
        if not len(rows):
            break
    return counts, result, raised


def _missing(counts: Tensor, result: FitResult, model: SmoothLensModel, lift: Tensor, sky: Tensor) -> Tensor:
    """Return counts (B,) that images lack in a native pixel for their sky to be the known one.

    A likelihood of all pixels would have the sky mend what substructure does to the arcs. So pixels weigh the less, the
    more light the model has in them: (m_0 / m)^4 / m for counts m, m_0 the fewest.
    """
    found = torch.full_like(sky, model.constants["sky"] * model.binning**2)
    if "sky" in model.free:
        found = result.parameters[:, model.free.index("sky")] * model.binning**2
    expected = result.model_counts.double()
    weight = (expected.amin((1, 2), keepdim=True) / expected) ** 4 / expected * (lift > 0)
    below = (weight * (expected - counts.double().where(torch.isfinite(counts), expected))).sum((1, 2))
    return (below + (sky - found) * weight.sum((1, 2))) / (weight * lift).sum((1, 2))
