"""A fitted image in which masses can be looked for, whatever lens was fitted to it.

A mass that the map shows joins a fit of everything: lens, source, and the source's corrections where they are marginalised.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from d4lens.detection.filters import MatchedFilter, Profile, matched_filter, power, whitened
from d4lens.detection.masses import LensWithMasses, column, with_another
from d4lens.macrofit.centre import deviance
from d4lens.macrofit.fitting import FitResult, fit_smooth_lens
from d4lens.macrofit.likelihood import covariance, objective
from d4lens.macrofit.marginal import MarginalFit, SingleImage
from d4lens.macrofit.smooth_lens import SmoothLensModel

_ITERATIONS = 30
_KEPT = 0.8
_STARTS = ((0.0, 0.0), (0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))  # pixels about a maximum
_NOTHING = 1e-6  # standard deviations in the whole image by one of a column's prior

Place = tuple[float, float]


class Scene(Protocol):
    """What a search needs of a fitted image (N, N) with K masses found so far.

    Attributes
    ----------
    lens : SmoothLensModel
        What was fitted, without masses.
    profile : str
        Of the masses.
    theta_E : float
        Of the main lens, arcsec.
    chi2 : float
        Per pixel, with the masses.
    image : MatchedFilter
        The matched filter about the lens without masses.
    significance, strength : Tensor
        (N, N) of one mass more at each pixel's centre: standard deviations, and its likeliest strength.
    """

    lens: SmoothLensModel
    profile: Profile
    theta_E: float
    chi2: float
    image: MatchedFilter
    significance: Tensor
    strength: Tensor

    def with_mass(self, strength: float, place: Place, promised: float) -> "tuple[Scene, float] | None":
        """Fit one mass more.

        Parameters
        ----------
        strength : float
            About its strength.
        place : (float, float)
            About its (x, y) in arcsec.
        promised : float
            What the map says it gains in deviance.

        Returns
        -------
        tuple of Scene and float, optional
            The scene with it, and what it gains in deviance. None where no fit of it converges.
        """

    def mass(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the parameters of one mass and the main lens's Einstein radius.

        Parameters
        ----------
        k : int
            Number of the mass, from 0.

        Returns
        -------
        values : Tensor
            (4,) strength, x, y and theta_E of the main lens; arcsec.
        covariance : Tensor
            (4, 4) of these.
        """


def scene_of(
    counts: Tensor, result: FitResult, lens: SmoothLensModel, *, noise: Tensor | None = None, profile: Profile = "point"
) -> Scene:
    """Return the scene of one fitted image.

    Parameters
    ----------
    counts : Tensor
        (1, N, N) photons; not finite: no data.
    result : FitResult
        Its fit (B = 1), a `MarginalFit` or the smooth one.
    lens : SmoothLensModel
        What was fitted.
    noise : Tensor, optional
        (N, N) standard deviations in counts, as a marginal fit was given them; None: photon counts.
    profile : str
        Of the masses, "point" or "sis".

    Returns
    -------
    Scene

    Raises
    ------
    D4LensError
        For no profile.
    """
    power(profile)
    if isinstance(result, MarginalFit):
        one = SingleImage(counts[0], lens, light=result.parameters.shape[1] > len(lens.free), noise=noise)
        z, fitted = torch.cat([result.parameters[0], result.corrections[0]]), (result.columns[0, 0], result.chi2[0])
        return _Marginal(one, counts[0], z, (float(fitted[0]), float(fitted[1])), profile)
    return _Smooth(counts, result, lens, profile)


def _with_masses(lens: SmoothLensModel, places: tuple[Place, ...], theta_E: float, profile: Profile) -> SmoothLensModel:
    return LensWithMasses(lens, places, theta_E, profile) if places else lens


class _Smooth:
    """The preset's lens, and masses fitted together with it."""

    def __init__(
        self,
        counts: Tensor,
        result: FitResult,
        lens: SmoothLensModel,
        profile: Profile,
        places: tuple[Place, ...] = (),
        image: MatchedFilter | None = None,
    ) -> None:
        self.lens, self.profile, self.places = lens, profile, places
        self._counts, self._result, self._parameters = counts, result, result.parameters[0]
        self.theta_E = float(result.columns[0, 0])
        self.model = _with_masses(lens, places, self.theta_E, profile)
        now = matched_filter(counts[0], self._parameters, self.model, profile)
        residual = whitened(counts[0], self._parameters, self.model)
        self.image = image or now
        self.significance, self.strength = now.significance(residual[None])[0], now.strength(residual)
        self.chi2 = float(result.chi2[0])

    def with_mass(self, strength: float, place: Place, promised: float) -> tuple[Scene, float] | None:
        """Fit from places about the map's maximum; the first that keeps most of what the map promises will do."""
        places = (*self.places, place)
        model = _with_masses(self.lens, places, self.theta_E, self.profile)
        step = model.observation.pixel_scale * model.binning
        before = float(deviance(self._counts, with_another(self._parameters, 0.0, place)[None], model))
        best, lowest = self._result, math.inf
        for right, up in _STARTS:
            start = with_another(self._parameters, strength, (place[0] + right * step, place[1] + up * step))
            found = fit_smooth_lens(self._counts, model, initial=start[None], fine_iterations=_ITERATIONS)
            value = float(deviance(self._counts, found.parameters, model))
            if found.converged[0] and value < lowest:
                best, lowest = found, value
            if before - lowest > _KEPT * promised:
                break
        if not lowest < before:
            return None
        return _Smooth(self._counts, best, self.lens, self.profile, places, self.image), before - lowest

    def mass(self, k: int) -> tuple[Tensor, Tensor]:
        assert isinstance(self.model, LensWithMasses)
        _, _, curvature = objective(self._counts.to(self.lens.device, self.lens.dtype), self.model.softened())(
            torch.arange(1), self._result.parameters
        )
        spreads = covariance(curvature)[0]
        own = column(self.model, k)
        values = torch.cat([self._parameters[own], torch.tensor([self.theta_E], dtype=torch.float64)])
        if "theta_E" not in self.model.free:
            return values, torch.nn.functional.pad(spreads[own, own], (0, 1, 0, 1))
        at = [*range(own.start, own.stop), self.model.free.index("theta_E")]
        return values, spreads[at][:, at]


class _Marginal:
    """A lens whose source is marginalised, and masses fitted together with it."""

    def __init__(
        self,
        one: SingleImage,
        counts: Tensor,
        z: Tensor,
        fitted: tuple[float, float],
        profile: Profile,
        places: tuple[Place, ...] = (),
        spreads: Tensor | None = None,
        image: MatchedFilter | None = None,
    ) -> None:
        self.lens, self.profile, self.places = one.model, profile, places
        self._one, self._counts, self._z, self._spreads = one, counts, z, spreads
        self.theta_E, self.chi2 = fitted
        self.model = _with_masses(self.lens, places, self.theta_E, profile)
        about = one.expansion(self.model, z)
        root = about.weights.sqrt()
        said = (about.columns * root).flatten(1).norm(dim=1) > _NOTHING * about.precision.sqrt()
        shift = about.columns[[self.lens.free.index(name) for name in ("source_x", "source_y")]]
        step = self.lens.observation.pixel_scale * self.lens.binning
        now = MatchedFilter(root, shift, about.columns[said], step, profile, about.precision[said])
        residual = (counts - about.expected).where(about.weights > 0, 0.0) * root
        explained = now.explained(residual, (about.precision * about.away)[said])
        information = now.information + now.width**-2
        self.image = image or now
        self.significance, self.strength = explained * information.rsqrt(), explained / information

    def with_mass(self, strength: float, place: Place, promised: float) -> tuple[Scene, float] | None:
        """Fit everything from the map's maximum, with a mass a native pixel wide first."""
        places = (*self.places, place)
        model, after = LensWithMasses(self.lens, places, self.theta_E, self.profile), len(self.model.free)
        nothing, begin = (with_another(self._z, s, place, after) for s in (0.0, strength))
        wide, _ = self._one.fit(model.softened(), begin)
        found, objective = self._one.fit(model, torch.cat([wide.parameters, wide.corrections]))
        gained = self._one.objective(model, nothing) - objective
        if not (bool(found.converged) and gained > 0):
            return None
        z, fitted = torch.cat([found.parameters, found.corrections]), (float(found.columns[0]), float(found.chi2))
        spreads = wide.covariance  # of the basin, not of one of its ruts
        return _Marginal(self._one, self._counts, z, fitted, self.profile, places, spreads, self.image), gained

    def mass(self, k: int) -> tuple[Tensor, Tensor]:
        assert isinstance(self.model, LensWithMasses)
        assert self._spreads is not None
        own = column(self.model, k)
        at = [*range(own.start, own.stop), self.model.free.index("theta_E")]
        return self._z[at], self._spreads[at][:, at]
