"""The smooth lens of a simulator's preset: what the preset fixes is known, the rest is fitted."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from d4lens.data.images.counts import FULL_SCALE
from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.macrofit.smooth_lens import PARAMETERS, Prior, SmoothLensModel, bounds
from d4lens.observation import Observation
from d4lens.simulator.priors import preset

# Standard deviations of the Gaussian about its preset's value that a parameter has where it is freed beyond what the
# preset leaves open: absolute for those that may be 0 (arcsec, ellipticity), relative for the positive ones.
_ABSOLUTE = {"lens_e1": 0.2, "lens_e2": 0.2, "lens_x": 0.05, "lens_y": 0.05}
_RELATIVE = {"n": 0.3, "R_e": 0.3, "amplitude": 0.5, "sky": 0.2, "psf_sigma": 0.1}


def preset_model(
    name: str,
    observation: Observation | None = None,
    binning: int = 1,
    *,
    free: Sequence[str] | None = None,
    units: str = "counts",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> SmoothLensModel:
    """Return the model for images like those of a preset of the simulator.

    Parameters
    ----------
    name : str
        The preset's.
    observation : Observation, optional
        The native image (None: the preset's); its sky and PSF are taken, and a surface brightness goes with the area of its
        pixels.
    binning : int
        The counts to be fitted are sums of binning x binning native pixels.
    free : sequence of str, optional
        Names to fit. None: FIT_COLUMNS, and whatever else the preset draws from a range; for images whose photon scale or
        background is unknown (`units` "normalised", or a preset with an exposure) amplitude and sky too. The preset's ranges
        do not bound a fit: an image that lies outside them is to be seen. A known parameter that is freed has a Gaussian about
        its preset's value.
    units : str
        "counts" or "normalised", of the images.
    dtype : torch.dtype
        Of the model.
    device : torch.device or str
        Of the model.

    Returns
    -------
    SmoothLensModel
        The model.

    Raises
    ------
    D4LensError
        For an unknown preset.
    PhysicsError
        As SmoothLensModel does.
    """
    source = preset(name)
    observation = observation or source.observation
    priors = source.priors
    middle = {
        key: math.sqrt(p.low * p.high) if p.kind == "log-uniform" else (p.low + p.high) / 2 for key, p in priors.items()
    }
    open_scale = units == "normalised" or "exposure" in priors
    area = (observation.pixel_scale / source.observation.pixel_scale) ** 2
    constants = {
        "n": middle["sersic_n"],
        "R_e": middle["sersic_R_e"],
        "amplitude": middle["sersic_amplitude"] * middle.get("exposure", 1.0) * area,
        "sky": observation.sky or 1.0,
        "psf_sigma": observation.psf_sigma,
    }
    q = middle["lens_q"]
    constants["lens_e1"] = (1 - q) / (1 + q) * math.cos(2 * middle["lens_phi"])
    constants["lens_e2"] = (1 - q) / (1 + q) * math.sin(2 * middle["lens_phi"])
    ranged = {key for key, p in priors.items() if p.kind != "fixed"}
    opened = {
        "n": "sersic_n",
        "R_e": "sersic_R_e",
        "amplitude": "sersic_amplitude",
        "lens_e1": "lens_q",
        "lens_e2": "lens_q",
    }
    drawn = {key for key, cause in opened.items() if cause in ranged} | ({"amplitude", "sky"} if open_scale else set())
    if free is None:
        free = [key for key in PARAMETERS if key in FIT_COLUMNS or key in drawn]
    if units == "normalised":
        constants |= {"amplitude": FULL_SCALE / 10 / binning**2, "sky": FULL_SCALE / 10 / binning**2}
    walls = bounds(observation)
    gaussians = {
        key: Prior(
            walls[key].lower, walls[key].upper, constants[key], _ABSOLUTE.get(key) or _RELATIVE[key] * constants[key]
        )
        for key in (*_ABSOLUTE, *_RELATIVE)
        if key in free and key not in drawn and key in constants
    }
    return SmoothLensModel(observation, constants, free, gaussians, binning=binning, dtype=dtype, device=device)


def pseudo_counts(pixels: Tensor) -> Tensor:
    """Return counts to fit where images run from 0 to 1 and their photon scale is lost.

    Each image is scaled to 1000 at its brightest and raised until its darkest corner's mean is that corner's variance,
    as a sky of photons has it: the background's weight is then right, that of the bright pixels a convention. A corner
    without noise is raised to one count. Pixels that are not finite stay so; the corners are then those of what is seen.

    Parameters
    ----------
    pixels : Tensor
        (B, N, N).

    Returns
    -------
    Tensor
        (B, N, N) float32.
    """
    scaled = pixels.float() * FULL_SCALE
    return torch.stack([image + _raise(image) for image in scaled])


def _raise(image: Tensor) -> Tensor:
    """Return what lifts an image (N, N) until its darkest corner's mean is its variance."""
    side = max(2, len(image) // 8)
    ends = (slice(None, side), slice(-side, None))
    seen = torch.isfinite(image)
    box = image[seen.any(1)][:, seen.any(0)]
    corners = [part[torch.isfinite(part)] for part in (box[i, j] for i in ends for j in ends)]
    corner = min((part for part in corners if len(part) > 1), key=lambda part: float(part.mean()), default=image[seen])
    return corner.var().clamp_min(1.0) - corner.mean()
