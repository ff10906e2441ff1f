"""Candidates in one image: found as maxima of the profiled map, refined by a joint fit, added while noise does not explain them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from d4lens.detection.false_alarms import simulate_false_alarms
from d4lens.detection.filters import Profile, power
from d4lens.detection.scenes import Scene

_MOST = 10


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
    chi2 : float
        Per pixel, of lens, source and candidates.
    complete : bool
        False where candidates were left, because of their number or because their fit did not converge.
    """

    candidates: tuple[Candidate, ...]
    significance: float
    p_false: float
    chi2: float
    complete: bool


def search(counts: Tensor, scene: Scene, *, p_false: float = 0.01) -> Found:
    """Look for masses in one image.

    Parameters
    ----------
    counts : Tensor
        (1, N, N) photons; they seed the noise.
    scene : Scene
        The image as fitted, of `scene_of`.
    p_false : float
        A maximum is a candidate while noise alone shows a higher one with less than this probability.

    Returns
    -------
    Found
    """
    x, y = (axis.cpu() for axis in scene.lens.pixel_centres())
    # Of the map without masses: a mass more among what is profiled out changes nothing that the trials resolve.
    law = simulate_false_alarms(scene.image, counts[0])
    taken: list[tuple[float, float, float]] = []
    while True:
        at = int(scene.significance.argmax())
        level = float(scene.significance.flatten()[at])
        probability = float(law.probability(level))
        if not probability < p_false or len(taken) == _MOST:
            break
        place = float(x.flatten()[at]), float(y.flatten()[at])
        more = scene.with_mass(float(scene.strength.flatten()[at]), place, level**2)
        if more is None:
            break
        scene, gained = more
        taken.append((gained, level, probability))
    candidates = tuple(_candidate(*scene.mass(k), scene.profile, *each) for k, each in enumerate(taken))
    return Found(candidates, level, probability, scene.chi2, not probability < p_false)


def _candidate(
    values: Tensor, spreads: Tensor, profile: Profile, gained: float, level: float, probability: float
) -> Candidate:
    of_strength = power(profile)
    strength, x, y, main = values.tolist()
    some = max(strength, 1e-30)
    theta_E = strength ** (1 / of_strength)
    mass = (theta_E / main) ** 2
    # d ln theta_E = d ln strength / power, d ln mass = 2 (d ln theta_E - d ln main).
    slope = torch.tensor([2 / (of_strength * some), 0.0, 0.0, -2 / main], dtype=torch.float64)
    sigma = spreads.diagonal().clamp_min(0).sqrt().tolist()
    return Candidate(
        x=x,
        y=y,
        theta_E=theta_E,
        mass=mass,
        sigma_x=sigma[1],
        sigma_y=sigma[2],
        sigma_theta_E=theta_E * sigma[0] / (of_strength * some),
        sigma_mass=mass * math.sqrt(max(float(slope @ spreads @ slope), 0.0)),
        delta_chi2=gained,
        significance=level,
        p_false=probability,
    )
