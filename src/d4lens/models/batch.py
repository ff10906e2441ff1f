"""What the networks read of a batch of images, made from their counts and the smooth fit."""

import torch
from torch import Tensor

from d4lens.macrofit import FitResult, SmoothLensModel, significance


def batch_of(counts: Tensor, result: FitResult, lens: SmoothLensModel) -> dict[str, Tensor]:
    """What the networks read of a batch of images: counts, residual and significance (B, N, N), fit (B, 7); float32.

    A pixel without data has the smooth lens's counts and residual 0.
    """
    return {
        "counts": torch.where(torch.isfinite(counts), counts.float(), result.model_counts),
        "residual": result.residual,
        "significance": significance(counts, result.parameters, lens),
        "fit": result.columns.float(),
    }
