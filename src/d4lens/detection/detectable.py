"""Where in an image which mass could have been seen."""

import math

import torch
from torch import Tensor

from d4lens.detection.profiled import Profile, power, profiled
from d4lens.errors import PhysicsError
from d4lens.macrofit.smooth_lens import SmoothLensModel


def sensitivity_map(
    counts: Tensor, parameters: Tensor, model: SmoothLensModel, *, sigma: float = 5.0, profile: Profile = "point"
) -> Tensor:
    """Map the mass that would show at `sigma` standard deviations, to first order in its strength.

    What the smooth lens would absorb of it is taken off. A mass is that within its Einstein radius, theta_E², over the
    main lens's.

    Parameters
    ----------
    counts : Tensor
        (N, N) photons; not finite: no data.
    parameters : Tensor
        (F,) of the fit, in the order of `model.free`.
    model : SmoothLensModel
        What was fitted.
    sigma : float
        Standard deviations, above 0.
    profile : str
        Of the mass, "point" or "sis".

    Returns
    -------
    Tensor
        (N, N) float32, masses in units of the main lens's; NaN where no mass up to the lens's own would show.

    Raises
    ------
    PhysicsError
        For a sigma that is not above 0.
    D4LensError
        For no profile.
    """
    if not 0 < sigma < math.inf:
        raise PhysicsError(f"sigma must be above 0 standard deviations and finite, not {sigma}")
    strength = sigma * profiled(counts, parameters, model, profile).information.rsqrt()
    mass: Tensor = strength ** (2 / power(profile)) / einstein_radius(parameters, model) ** 2
    return mass.where(mass < 1, torch.nan).float()


def einstein_radius(parameters: Tensor, model: SmoothLensModel) -> float:
    """Return the main lens's Einstein radius, fitted or known, in arcsec."""
    return float(parameters[model.free.index("theta_E")]) if "theta_E" in model.free else model.constants["theta_E"]
