"""Images in, masses out: candidates beside the main lens, how sure they are, and which mass could have been seen where."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from d4lens.data.images import ImageSource, Instrument, Prepared
from d4lens.detection import Candidate, Found, Profile, Scene, power, scene_of, search, sensitivity_map
from d4lens.errors import D4LensError
from d4lens.files import atomic_path
from d4lens.flags import Flag, Raised, abstains, join_flags
from d4lens.inference.pipeline import DEFAULT_PRESET, Answer, Fitted, centres_of, fitted_batches, flags_of, way_of
from d4lens.lensing.cosmology import theta_E_point
from d4lens.macrofit import preset_model
from d4lens.macrofit.centre import promise
from d4lens.macrofit.threads import in_threads
from d4lens.macrofit.world import AUTO, CONSTANTS, MARGINAL
from d4lens.observation import Observation

_OF_CANDIDATE = ("x", "y", "theta_E", "mass", "sigma_x", "sigma_y", "sigma_theta_E", "sigma_mass", "delta_chi2")
DETECT_COLUMNS = ("path", "rank", *_OF_CANDIDATE, "significance", "p_false", "chi2", "flag", "processing")
"""Lengths in arcsec from the image's centre, masses in units of the main lens's."""
MSUN_COLUMNS = ("mass_msun", "sigma_mass_msun")
"""Beside them, where redshifts are given: the masses in solar masses."""

_WORTH = 25.0  # chi-squared that another shape must explain to be a rival
_GRACE = 4.0  # standard deviations of chi2 beyond which what is left is no noise


@dataclass(frozen=True)
class Wanted:
    """What is looked for.

    Attributes
    ----------
    profile : str
        Of a mass: "point" or "sis".
    p_false : float
        Probability that noise alone shows so high a maximum, below which it is a candidate.
    z_lens, z_source : float, optional
        Redshifts, both or none.
    sensitivity : Path, optional
        FITS file for maps of the mass that could have been seen.
    sigma : float
        Standard deviations at which it would show in those maps.
    force : bool
        List candidates also where a flag withholds them.

    Raises
    ------
    D4LensError
        For a value out of range, or one redshift without the other.
    """

    profile: Profile = "point"
    p_false: float = 0.01
    z_lens: float | None = None
    z_source: float | None = None
    sensitivity: Path | None = None
    sigma: float = 5.0
    force: bool = False

    def __post_init__(self) -> None:
        power(self.profile)
        if not 0 < self.p_false < 1:
            raise D4LensError(f"p_false must lie between 0 and 1, not {self.p_false}")
        if not 0 < self.sigma < math.inf:
            raise D4LensError(f"sigma must be above 0 standard deviations and finite, not {self.sigma}")
        if (self.z_lens is None) != (self.z_source is None):
            raise D4LensError("solar masses need both redshifts, the lens's and the source's; give the other too")
        if self.z_lens is not None:
            self.msun(1.0)  # refuses redshifts out of range
        if self.sensitivity is not None and self.sensitivity.suffix.lower() not in (".fits", ".fit", ".fts"):
            raise D4LensError(f"{self.sensitivity} is no name of a FITS file; end it in .fits")

    def msun(self, theta_E: float) -> float:
        """Return the mass within an Einstein radius in solar masses.

        Parameters
        ----------
        theta_E : float
            Arcsec.

        Returns
        -------
        float
            Solar masses.
        """
        assert self.z_lens is not None
        assert self.z_source is not None
        return (theta_E / float(theta_E_point(1.0, self.z_lens, self.z_source))) ** 2


def detect_sources(
    sources: Sequence[ImageSource],
    *,
    instrument: Instrument = Instrument(),  # noqa: B008 - frozen
    free: Sequence[str] = (),
    model: str = AUTO,
    wanted: Wanted = Wanted(),
    progress: bool = True,
) -> Answer:
    """Look for masses beside the main lens in every image.

    Parameters
    ----------
    sources, instrument, free, model, progress
        As `inference.pipeline.classify` takes them.
    wanted : Wanted
        What is looked for.

    Returns
    -------
    Answer
        One row a candidate, columns DETECT_COLUMNS. An image without candidates has one row of rank 0, whose significance
        and p_false are those of its map's highest maximum. So has one with a flag that withholds an answer; there they
        are empty.

    Raises
    ------
    D4LensError
        For a place where the maps cannot be written.
    """
    rows: dict[str, list[dict[str, object]]] = {}
    failures, maps = [], {}
    way, grid = replace(way_of(model, instrument, free), published_alone=True), preset_model(DEFAULT_PRESET).observation
    for fitted, broken in fitted_batches(sources, grid, instrument, way, progress, own_pixels=True):
        failures += broken
        for name, reason in broken:
            rows[name] = [_empty(name, [Raised(Flag.FAILED, reason)])]
        for part in fitted:
            work = partial(_one, part, _rival(part), wanted)
            answers = in_threads(work, range(len(part.names)), torch.get_num_threads())
            for i, (found, image) in enumerate(answers):
                rows[part.names[i]] = found
                if wanted.sensitivity is not None:
                    maps[part.names[i]] = _Map(image, part.images[i], str(found[0]["flag"]))
    columns = [*DETECT_COLUMNS[:6], *(MSUN_COLUMNS if wanted.z_lens is not None else ()), *DETECT_COLUMNS[6:]]
    table = pd.DataFrame([row for source in sources for row in rows[source.name]], columns=columns)
    if wanted.sensitivity is not None:
        _write(wanted.sensitivity, [(source, maps.get(source.name)) for source in sources], grid, instrument, wanted)
    return Answer(table.astype({"rank": int}), failures)


def scene(part: Fitted, i: int, profile: Profile = "point") -> Scene:
    """Return one image of a part as a search for masses takes it.

    Parameters
    ----------
    part : Fitted
        Images that share a lens.
    i : int
        Number of the image in the part.
    profile : str
        Of the masses, "point" or "sis".

    Returns
    -------
    Scene
        The image with its fit.
    """
    variance = part.images[i].variance
    noise = None if variance is None else torch.from_numpy(variance).sqrt()
    return scene_of(part.counts[i : i + 1], part.result.rows(slice(i, i + 1)), part.lens, noise=noise, profile=profile)


def _rival(part: Fitted) -> list[float]:
    """Return the deviance that each image would gain, to first order, if lens and source had another shape instead of masses."""
    names = [name for name in CONSTANTS if name not in part.lens.free]
    if part.model == MARGINAL or not names:
        return [0.0] * len(part.names)
    gain, _ = promise(part.counts, part.result, part.lens, tuple(names))
    return [float(each) for each in gain]


def _one(
    part: Fitted, rivals: Sequence[float], wanted: Wanted, i: int
) -> tuple[list[dict[str, object]], NDArray[np.float32]]:
    """Return the rows of image `i` of a part, and its map of masses that could have been seen."""
    raised, counts, name = flags_of(part, i), part.counts[i : i + 1], part.names[i]
    chi2 = float(part.result.chi2[i])
    notes = "; ".join(part.images[i].notes)
    nothing = np.full(counts.shape[1:], np.nan, np.float32)
    if not math.isfinite(chi2) or (abstains(raised) and not wanted.force):
        return [_empty(name, raised, notes, chi2)], nothing
    image = scene(part, i, wanted.profile)
    mass = nothing
    if wanted.sensitivity is not None:
        mass = sensitivity_map(image, sigma=wanted.sigma).numpy()
        if wanted.z_lens is not None:
            mass *= wanted.msun(image.theta_E)
    found = search(counts, image, p_false=wanted.p_false)
    raised += _doubts(found, counts, part.images[i], rivals[i])
    if abstains(raised) and not wanted.force:
        return [_empty(name, raised, notes, found.chi2)], mass
    common = {"path": name, "chi2": found.chi2, "flag": join_flags(raised), "processing": notes}
    centre = centres_of([part.images[i]])[0].tolist()
    rows: list[dict[str, object]] = [
        {"rank": rank, **_values(candidate, centre, wanted), **common}
        for rank, candidate in enumerate(found.candidates, 1)
    ]
    return rows or [{"rank": 0, "significance": found.significance, "p_false": found.p_false, **common}], mass


def _doubts(found: Found, counts: torch.Tensor, image: Prepared, rival: float) -> list[Raised]:
    """Return flags for what the masses leave over, and for what another shape explains better."""
    pixels = int(torch.isfinite(counts).sum())
    noisy = found.chi2 < image.noise + _GRACE * math.sqrt(2 / pixels)
    raised = [] if noisy and found.complete else [Raised(Flag.UNEXPLAINED)]
    gained = sum(candidate.delta_chi2 for candidate in found.candidates)
    if (found.candidates or raised) and rival > max(_WORTH, gained):
        raised.append(Raised(Flag.ANOTHER_LENS))
    return raised


def _values(candidate: Candidate, centre: Sequence[float], wanted: Wanted) -> dict[str, object]:
    values: dict[str, object] = dict(vars(candidate))
    values |= {"x": candidate.x - centre[0], "y": candidate.y - centre[1]}
    if wanted.z_lens is not None:
        mass = wanted.msun(candidate.theta_E)
        relative = 2 * candidate.sigma_theta_E / max(candidate.theta_E, 1e-30)
        values |= dict(zip(MSUN_COLUMNS, (mass, mass * relative), strict=True))
    return values


def _empty(name: str, raised: Sequence[Raised], notes: str = "", chi2: float = math.nan) -> dict[str, object]:
    return {"path": name, "rank": 0, "chi2": chi2, "flag": join_flags(raised), "processing": notes}


@dataclass(frozen=True)
class _Map:
    """A map of masses (N, N), the image it is of, and that image's flags."""

    mass: NDArray[np.float32]
    image: Prepared
    flag: str


def _write(
    path: Path,
    maps: Sequence[tuple[ImageSource, _Map | None]],
    grid: Observation,
    instrument: Instrument,
    wanted: Wanted,
) -> None:
    """Write the maps as a FITS file: one image's in the primary HDU, several in an extension each, in the images' order."""
    from astropy.io import fits

    hdus = []
    for source, found in maps:
        header, pixels = fits.Header(), grid
        if found is not None:
            pixels = found.image.grid
            header.update(_wcs(source, found.image, instrument))
            header["FLAG"] = (ascii(found.flag)[1:-1], "what to beware of")
        header["BUNIT"] = ("solMass" if wanted.z_lens is not None else "", "empty: units of the main lens's mass")
        header["SIGMA"] = (wanted.sigma, "standard deviations at which a mass shows")
        header["PROFILE"] = (wanted.profile, "of the mass")
        header["PIXSCALE"] = (pixels.pixel_scale, "arcsec per pixel of this map")
        header["SOURCE"] = (ascii(source.name)[1:-1], "image")
        mass = found.mass if found is not None else np.full((grid.n_pixels, grid.n_pixels), np.nan, np.float32)
        hdus.append(fits.ImageHDU(mass, header))
    if len(hdus) == 1:
        hdus = [fits.PrimaryHDU(hdus[0].data, hdus[0].header)]
    else:
        hdus.insert(0, fits.PrimaryHDU())
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)  # long names go on over several cards
        fits.HDUList(hdus).writeto(temporary, overwrite=True)


def _wcs(source: ImageSource, image: Prepared, instrument: Instrument) -> dict[str, Any]:
    """Return the cards of a tangential WCS for the grid that agrees with the image's own at its centre; none without one.

    x and y of a map grow as the image's columns and rows do.
    """
    raw = source.read(instrument.band)
    local = raw.header.sky(raw.pixels.shape)
    if local is None:
        return {}
    grid = image.grid
    ratio = grid.pixel_scale / image.pixel_scale
    middle = (grid.n_pixels + 1) / 2
    cards = dict(local.frame) | {f"CRPIX{i}": middle + at / grid.pixel_scale for i, at in enumerate(image.centre, 1)}
    for i in (1, 2):
        cards |= {f"CRVAL{i}": local.centre[i - 1], f"CUNIT{i}": "deg"}
        cards |= {f"CD{i}_{j}": float(local.degrees[i - 1, j - 1]) * ratio for j in (1, 2)}
    return cards
