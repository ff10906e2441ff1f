"""Where in an image which mass could have been seen."""

import math

import torch
from torch import Tensor

from d4lens.detection.filters import power
from d4lens.detection.scenes import Scene
from d4lens.errors import PhysicsError


def sensitivity_map(scene: Scene, *, sigma: float = 5.0) -> Tensor:
    """Map the mass that would show at `sigma` standard deviations, to first order in its strength.

    What lens and source would absorb of it is taken off. A mass is that within its Einstein radius, theta_E², over the
    main lens's.

    Parameters
    ----------
    scene : Scene
        The image as fitted, of `scene_of`.
    sigma : float
        Standard deviations, above 0.

    Returns
    -------
    Tensor
        (N, N) float32, masses in units of the main lens's; NaN where no mass up to the lens's own would show.

    Raises
    ------
    PhysicsError
        For a sigma that is not above 0.
    """
    if not 0 < sigma < math.inf:
        raise PhysicsError(f"sigma must be above 0 standard deviations and finite, not {sigma}")
    strength = sigma * scene.image.information.rsqrt()
    mass: Tensor = strength ** (2 / power(scene.profile)) / scene.theta_E**2
    return mass.where(mass < 1, torch.nan).float()
