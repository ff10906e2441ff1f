"""Whose lens an image is fitted with: the preset's, or one that takes little for granted."""

from torch import Tensor

from d4lens.macrofit.centre import promise, unexplained
from d4lens.macrofit.fitting import FitResult
from d4lens.macrofit.smooth_lens import SmoothLensModel

SPECIALIST, MARGINAL, AUTO = MODELS = ("specialist", "marginal", "auto")
"""The preset's lens; one whose source and lens light are marginalised; the first where the image is of the preset's world."""

CONSTANTS = ("lens_e1", "lens_e2", "n", "R_e", "amplitude")
"""What the preset fixes of the shape of lens and source."""
# A share of what is left that long rods reach in one in fifty of the preset's own images, smooth lenses of other
# worlds nearly always.
_GAIN, _SHARE = 25.0, 0.52


def foreign(counts: Tensor, result: FitResult, lens: SmoothLensModel, largest_chi2: float | None = None) -> Tensor:
    """Say which images the preset's lens does not describe, (B,) bool.

    Those are images whose fit did not converge, whose chi2 a pixel is above `largest_chi2`, or whose misfit would go, most
    of it, if the constants of the lens and the source were free: a score test, one evaluation an image.

    Parameters
    ----------
    counts : (B, N, N)
        Photons.
    result, lens
        The fit and its model.
    largest_chi2 : float, optional
        Per pixel, of the preset's images.
    """
    unlike = ~result.converged
    if largest_chi2 is not None:
        unlike = unlike | (result.chi2 > largest_chi2)
    names = tuple(name for name in CONSTANTS if name not in lens.free)
    if names:
        left = unexplained(counts, result.chi2)
        gain, _ = promise(counts, result, lens, names)
        unlike = unlike | ((gain > _GAIN) & (gain > _SHARE * left))
    return unlike
