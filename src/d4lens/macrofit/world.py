"""Whose lens an image is fitted with: the preset's, or one that takes little for granted."""

from collections.abc import Iterable

import torch
from torch import Tensor

from d4lens.macrofit.centre import gained, slope, unexplained
from d4lens.macrofit.fitting import FitResult
from d4lens.macrofit.likelihood import covariance
from d4lens.macrofit.smooth_lens import SmoothLensModel

SPECIALIST, MARGINAL, AUTO = MODELS = ("specialist", "marginal", "auto")
"""The preset's lens; one whose source and lens light are marginalised; the first where the image is of the preset's world."""

CONSTANTS = ("lens_e1", "lens_e2", "n", "R_e", "amplitude")
"""What the preset fixes of the shape of lens and source."""
# A share of what is left that long rods reach in one in seventy of the preset's own images, smooth lenses of other worlds
# nearly always.
_GAIN, _SHARE = 25.0, 0.6
# Substructure pulls a constant about, by as much per root of the deviance that it leaves: 300 of the preset's images.
_PULL = {"lens_e1": 5.9e-4, "lens_e2": 5.9e-4, "R_e": 1.75e-4, "psf_sigma": 1.46e-4}
_FAR = 16.0  # squared standard deviations, of noise and of that, that one in fifty of the preset's images exceeds


def foreign(
    counts: Tensor,
    result: FitResult,
    lens: SmoothLensModel,
    largest_chi2: float | None = None,
    noise: Tensor | float = 1.0,
) -> Tensor:
    """Say which images the preset's lens does not describe.

    Those are images whose fit did not converge, whose chi2 a pixel is above `largest_chi2`, or which ask for other
    constants of the lens, the source and the PSF. One linear step, for one evaluation an image, tells whether most of the
    misfit would go with them free, and how far they would move: farther than noise moves them and substructure, that leaves
    as much misfit as the step does.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) photons; not finite: no data.
    result : FitResult
        Their fit.
    lens : SmoothLensModel
        What was fitted.
    largest_chi2 : float, optional
        Per pixel, of the preset's images.
    noise : Tensor or float
        (B,) variance over mean of the images' sky, below 1 where resampling has averaged neighbours.

    Returns
    -------
    Tensor
        (B,) bool.
    """
    unlike, chi2 = ~result.converged, result.chi2 + (1 - noise)
    if largest_chi2 is not None:
        unlike = unlike | (chi2 > largest_chi2)
    names = tuple(name for name in dict.fromkeys((*CONSTANTS, *_PULL)) if name not in lens.free)
    if not names:
        return unlike
    n = len(lens.free)
    _, score, curvature = slope(counts, result, lens, names)

    def taken(which: Iterable[str]) -> tuple[Tensor, Tensor]:
        # Score and curvature of the lens's parameters and those of `which` that it does not know.
        rows = torch.tensor([*range(n), *(n + names.index(name) for name in which if name in names)])
        return score[:, rows], curvature[:, rows[:, None], rows]

    _, gain = gained(*taken(CONSTANTS), n)
    unlike = unlike | ((gain > _GAIN) & (gain > _SHARE * unexplained(counts, chi2)))
    pulls = [pull for name, pull in _PULL.items() if name in names]
    if pulls:
        part, within = taken(_PULL)
        step, gain = gained(part, within, n)
        pixels = torch.isfinite(counts).sum((1, 2)).double()
        left = ((chi2 - 1) * pixels - gain).clamp_min(0)
        spread = covariance(within)[:, n:, n:]
        spread = spread + left[:, None, None] * torch.diag(torch.tensor(pulls, dtype=torch.float64).square())
        away = step[:, n:]
        far = (away * torch.linalg.solve_ex(spread.nan_to_num(1e30, 1e30), away)[0]).sum(1)
        unlike = unlike | (far > _FAR)  # not where the fit says nothing of them
    return unlike
