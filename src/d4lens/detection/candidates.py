"""Candidates in one image: found as maxima of the profiled map, refined by a joint fit, added while noise does not explain them."""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from d4lens.detection.detectable import einstein_radius
from d4lens.detection.false_alarms import TRIALS, simulate
from d4lens.detection.masses import LensWithMasses, column, with_another
from d4lens.detection.profiled import Profile, power, profiled, whitened
from d4lens.macrofit.centre import deviance
from d4lens.macrofit.fitting import FitResult, fit
from d4lens.macrofit.likelihood import covariance, objective
from d4lens.macrofit.smooth_lens import SmoothLensModel

_ITERATIONS = 30
_MOST = 10
_KEPT = 0.8
_STARTS = ((0.0, 0.0), (0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))  # pixels about a maximum


@dataclass(frozen=True)
class Candidate:
    """One mass beside the main lens, with its standard deviations by the Fisher matrix of the joint fit.

    Attributes
    ----------
    x, y : float
        Place on the image's grid, arcsec.
    theta_E : float
        Einstein radius, arcsec.
    mass : float
        theta_E² over the main lens's: the mass within the one over that within the other.
    sigma_x, sigma_y, sigma_theta_E, sigma_mass : float
        Standard deviations.
    delta_chi2 : float
        Deviance that it gained when it was added.
    significance : float
        The map's maximum that it was, in local standard deviations.
    p_false : float
        Probability that noise alone shows such a maximum anywhere in the image.
    """

    x: float
    y: float
    theta_E: float
    mass: float
    sigma_x: float
    sigma_y: float
    sigma_theta_E: float
    sigma_mass: float
    delta_chi2: float
    significance: float
    p_false: float


@dataclass(frozen=True)
class Found:
    """What an image holds beside its smooth lens.

    Attributes
    ----------
    candidates : tuple of Candidate
        In the order found.
    significance, p_false : float
        Of the highest maximum that was not taken for a candidate.
    result : FitResult
        The joint fit (B = 1) of lens, source and candidates.
    model : SmoothLensModel
        What it fitted.
    complete : bool
        False where candidates were left, because of their number or because their fit did not converge.
    """

    candidates: tuple[Candidate, ...]
    significance: float
    p_false: float
    result: FitResult
    model: SmoothLensModel
    complete: bool


def search(
    counts: Tensor,
    result: FitResult,
    lens: SmoothLensModel,
    *,
    profile: Profile = "point",
    p_false: float = 0.01,
    trials: int = TRIALS,
) -> Found:
    """Look for masses in one image.

    Parameters
    ----------
    counts : Tensor
        (1, N, N) photons; not finite: no data.
    result : FitResult
        Its smooth fit (B = 1).
    lens : SmoothLensModel
        What was fitted.
    profile : str
        Of the masses, "point" or "sis".
    p_false : float
        A maximum is a candidate while noise alone shows a higher one with less than this probability.
    trials : int
        Of noise.

    Returns
    -------
    Found

    Raises
    ------
    D4LensError
        For no profile.
    """
    model, places = lens, list[tuple[float, float]]()
    taken: list[tuple[float, float, float]] = []
    x, y = (axis.cpu() for axis in lens.pixel_centres())
    while True:
        parameters = result.parameters[0]
        image = profiled(counts[0], parameters, model, profile)
        residual = whitened(counts[0], parameters, model)
        seen = image.significance(residual[None])[0]
        at = int(seen.argmax())
        level = float(seen.flatten()[at])
        probability = float(simulate(image, counts[0], trials).probability(level))
        if not probability < p_false or len(places) == _MOST:
            break
        place = float(x.flatten()[at]), float(y.flatten()[at])
        more = LensWithMasses(lens, [*places, place], einstein_radius(parameters, model), profile)
        strength = float(image.strength(residual).flatten()[at])
        better, gained = _refined(counts, parameters, more, strength, place, level**2)
        if not better.converged[0] or not gained > 0:
            break
        taken.append((gained, level, probability))
        result, model, places = better, more, [*places, place]
    if isinstance(model, LensWithMasses):
        _, _, curvature = objective(counts.to(lens.device, lens.dtype), model.softened())(
            torch.arange(1), result.parameters
        )
        result = replace(result, covariance=covariance(curvature))
    candidates = tuple(_candidate(result, model, k, *each) for k, each in enumerate(taken))
    return Found(candidates, level, probability, result, model, not probability < p_false)


def _refined(
    counts: Tensor,
    parameters: Tensor,
    model: LensWithMasses,
    strength: float,
    place: tuple[float, float],
    promised: float,
) -> tuple[FitResult, float]:
    """Return the best joint fit from places about the map's maximum, and its gain in deviance.

    The first that keeps most of what the map promises will do.
    """
    step = model.observation.pixel_scale * model.binning
    before = float(deviance(counts, with_another(parameters, 0.0, place)[None], model))
    best, lowest = None, math.inf
    for right, up in _STARTS:
        start = with_another(parameters, strength, (place[0] + right * step, place[1] + up * step))
        found = fit(counts, model, initial=start[None], fine_iterations=_ITERATIONS)
        value = float(deviance(counts, found.parameters, model))
        if best is None or (bool(found.converged), -value) > (bool(best.converged), -lowest):
            best, lowest = found, value
        if best.converged and before - lowest > _KEPT * promised:
            break
    assert best is not None
    return best, before - lowest


def row_of(result: FitResult, i: int) -> FitResult:
    """Take the fit of image `i` alone."""
    return FitResult(*(getattr(result, each.name)[i : i + 1] for each in fields(FitResult)))


def _candidate(
    result: FitResult, model: SmoothLensModel, k: int, gained: float, level: float, probability: float
) -> Candidate:
    assert isinstance(model, LensWithMasses)
    of_strength, own = power(model.profile), column(model, k)
    parameters, spreads = result.parameters[0], result.covariance[0]
    strength, x, y = parameters[own].tolist()
    main = einstein_radius(parameters, model)
    theta_E = strength ** (1 / of_strength)
    mass = (theta_E / main) ** 2
    # d ln theta_E = d ln strength / power, d ln mass = 2 (d ln theta_E - d ln main).
    slope = torch.zeros(len(parameters), dtype=torch.float64)
    slope[own.start] = 2 / (of_strength * max(strength, 1e-30))
    if "theta_E" in model.free:
        slope[model.free.index("theta_E")] = -2 / main
    spread = result.sigma[0]
    return Candidate(
        x=x,
        y=y,
        theta_E=theta_E,
        mass=mass,
        sigma_x=float(spread[own.start + 1]),
        sigma_y=float(spread[own.start + 2]),
        sigma_theta_E=theta_E * float(spread[own.start]) / (of_strength * max(strength, 1e-30)),
        sigma_mass=mass * math.sqrt(max(float(slope @ spreads @ slope), 0.0)),
        delta_chi2=gained,
        significance=level,
        p_false=probability,
    )
