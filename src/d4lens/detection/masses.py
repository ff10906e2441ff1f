"""The smooth lens with masses in it, for the joint fit of all their parameters."""

from collections.abc import Mapping, Sequence
from copy import copy

import torch
from torch import Tensor
from typing_extensions import override

from d4lens.detection.filters import Profile, power
from d4lens.macrofit.smooth_lens import Prior, SmoothLensModel

_SOFTENING = 0.1  # of a native pixel: a mass on a pixel's very centre deflects nothing there, and infinitely beside it
_JAGGED = 1.0  # of a native pixel: over so much the likelihood of sampled pixels is jagged by the mass's place
_HEAVIEST = 0.25  # of the lens's own mass: what is heavier is another lens
_REACH = 5.0  # pixels from where the map has its maximum


class LensWithMasses(SmoothLensModel):
    """A smooth lens and K masses; their `strength_k`, `x_k`, `y_k` follow the lens's own free parameters.

    Parameters
    ----------
    lens : SmoothLensModel
        The lens without them.
    places : sequence of (float, float)
        (x, y) arcsec where each mass is looked for; it may move five pixels from there.
    theta_E : float
        arcsec, the lens's own, which bounds the masses.
    profile : str
        "point": alpha = strength d / |d|². "sis": alpha = strength d / |d|. d is the vector from the mass.
    """

    group = 1  # images computed together: each has masses of its own

    def __init__(
        self,
        lens: SmoothLensModel,
        places: Sequence[tuple[float, float]],
        theta_E: float,
        profile: Profile = "point",
    ) -> None:
        self.__dict__.update(lens.__dict__)
        self.softening = _SOFTENING
        self.lens, self.profile, self.places, self.theta_E = lens, profile, tuple(places), theta_E
        within = _REACH * lens.observation.pixel_scale * lens.binning
        most = _HEAVIEST ** (power(profile) / 2) * theta_E ** power(profile)
        self.priors = dict(lens.priors)
        for k, place in enumerate(self.places):
            self.priors[f"strength_{k}"] = Prior(0.0, most)
            for axis, at in zip("xy", place, strict=True):
                self.priors[f"{axis}_{k}"] = Prior(at - within, at + within)
        self.free = (*lens.free, *(f"{name}_{k}" for k in range(len(places)) for name in ("strength", "x", "y")))

    def softened(self) -> "LensWithMasses":
        """Return the same with masses a native pixel wide.

        The curvature is then that of the likelihood's basin and not of one of its ruts.

        Returns
        -------
        LensWithMasses
            A copy.
        """
        wide = copy(self)
        wide.softening = _JAGGED
        return wide

    @override
    def at(self, binning: int, sampling: int) -> "LensWithMasses":
        other = LensWithMasses(self.lens.at(binning, sampling), self.places, self.theta_E, self.profile)
        other.softening, other.priors = self.softening, self.priors
        return other

    @override
    def _deflection(
        self, p: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        alpha_x, alpha_y, slopes = super()._deflection(p, wanted)
        soft = (self.softening * self.observation.pixel_scale) ** 2
        falls = power(self.profile)
        for k in range(len(self.places)):
            strength, x, y = (p[f"{name}_{k}"] for name in ("strength", "x", "y"))
            dx, dy = self._x - x, self._y - y
            squared = dx * dx + dy * dy + soft
            unit = 1 / squared if self.profile == "point" else squared.rsqrt()
            alpha_x, alpha_y = alpha_x + strength * dx * unit, alpha_y + strength * dy * unit
            if wanted:
                bend = strength * falls * unit / squared  # unit goes as |d| to the power -falls
                xx, xy, yy = (bend * a * b for a, b in ((dx, dx), (dx, dy), (dy, dy)))
                slopes[f"strength_{k}"] = (dx * unit, dy * unit)
                slopes[f"x_{k}"] = (xx - strength * unit, xy)
                slopes[f"y_{k}"] = (xy, yy - strength * unit)
        return alpha_x, alpha_y, slopes


def column(model: LensWithMasses, k: int) -> slice:
    """Return where the parameters of one mass stand among the model's.

    Parameters
    ----------
    model : LensWithMasses
        The lens with masses.
    k : int
        Number of the mass, from 0.

    Returns
    -------
    slice
        Columns of its strength, x and y.
    """
    first = len(model.lens.free) + 3 * k
    return slice(first, first + 3)


def with_another(parameters: Tensor, strength: float, place: tuple[float, float], after: int | None = None) -> Tensor:
    """Return parameters with those of one more mass.

    Parameters
    ----------
    parameters : Tensor
        (F,).
    strength : float
        Of the mass: theta_E² (arcsec²) for `point`, theta_E (arcsec) for `sis`.
    place : (float, float)
        Its (x, y) in arcsec.
    after : int, optional
        How many parameters stand before those of the mass; by default all.

    Returns
    -------
    Tensor
        (F + 3,) float64.
    """
    after = len(parameters) if after is None else after
    mass = torch.tensor([strength, *place], dtype=torch.float64)
    return torch.cat([parameters[:after], mass, parameters[after:]])
