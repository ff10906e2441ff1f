"""The fit of a smooth lens to each image, with its residual and its significance map."""

from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.macrofit.faintest import fit_faintest
from d4lens.macrofit.fitting import TABLE_COLUMNS, FitResult, fit_smooth_lens
from d4lens.macrofit.marginal import MarginalFit, fit_marginal, open_model
from d4lens.macrofit.presets import preset_model, pseudo_counts
from d4lens.macrofit.significance import significance_maps
from d4lens.macrofit.smooth_lens import PARAMETERS, Prior, SmoothLensModel, bounds
from d4lens.macrofit.split import fit_split

__all__ = [
    "FIT_COLUMNS",
    "PARAMETERS",
    "TABLE_COLUMNS",
    "FitResult",
    "MarginalFit",
    "Prior",
    "SmoothLensModel",
    "bounds",
    "fit_faintest",
    "fit_marginal",
    "fit_smooth_lens",
    "fit_split",
    "open_model",
    "preset_model",
    "pseudo_counts",
    "significance_maps",
]
