"""How often an image that a user is likely to bring gets a wrong answer without a flag: metrics/reliability.json and the
section "Wrong and unflagged" of docs/reliability.md.

    python tools/field_faults.py                     all kinds, about five minutes on two cores
    python tools/field_faults.py --kinds A C         some kinds, printed only

Every kind of fault that use has met has several variants here, each made from simulated lenses of all three classes, which
the package's networks then label. An image is flagged if it has a flag, is refused or gets no label; else its label is
right, or wrong and unflagged. Of other lenses, sources and light (kind O) the probabilities are scored too.
"""

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy import units
from astropy.io import fits
from astropy.nddata import CCDData
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import fftconvolve

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.files import write_text
from d4lens.inference.api import Model, Simulated, load_model, simulate
from d4lens.progress import with_progress
from d4lens.results.metrics import wilson, with_intervals
from d4lens.results.outcome import Outcome, record, write_outcome
from d4lens.simulator import Truth, preset, render
from d4lens.studies.mismatch import Case, cases, simulated

KINDS = {
    "-": "none: images as the preset makes them",
    "A": "min-max images, arcs at every angle",
    "B": "a file format's levels",
    "C": "fields smaller than the network's",
    "D": "pixels without data",
    "E": "pixel scales of every spelling",
    "F": "off-centre",
    "G": "header synonyms",
    "H": "PSFs",
    "O": "other lenses, sources and light",
}
_SCORED, _LEAST = "O", 30
"""The kind whose probabilities are scored, and the least images of each of its variants."""
_SCORES = {"auc_macro": "macro AUC", "auc_no": "AUC, no against rest"}
_SHARES = ("smooth, called structured", "labelled")
TARGET = 0.03
"""Share of the images of a kind that may be wrong and unflagged."""
_BEGIN, _END = "<!-- wrong and unflagged:begin -->", "<!-- wrong and unflagged:end -->"
_ROOT = Path(__file__).resolve().parents[1]
_SEED = 15_000_000  # of no training

Array = NDArray[Any]
Measured = tuple[float, float, float, int]  # value, ends of its interval, images


@dataclass(frozen=True)
class Given:
    """What a user gives: images, what is known of them, and their true labels."""

    images: Any
    labels: Sequence[str]
    known: Mapping[str, Any]


class Bench:
    """Makes the images of one variant: `n` of them, in turn of the three classes, by a seed of its own; files go to `folder`."""

    def __init__(self, n: int, seed: int, folder: Path) -> None:
        self.n = n
        self.seed = seed
        self.folder = folder
        self.random = np.random.default_rng(seed)

    def lenses(self, **overrides: Any) -> Simulated:
        return simulate("deeplense", self.n, self.seed, overrides)

    def files(self, images: Iterable[Array], suffix: str, save: Callable[[Array, Path], Any]) -> list[Path]:
        """The images as files, written by `save`."""
        paths = []
        for i, image in enumerate(images):
            paths.append(self.folder / f"{i:04d}{suffix}")
            save(image, paths[-1])
        return paths

    def fits(self, images: Iterable[Array], cards: Mapping[str, Any], primary: Mapping[str, Any] | None = None) -> Any:
        """The images as FITS files with these cards, or in an extension SCI with them after a primary with others."""

        def save(image: Array, path: Path) -> None:
            if primary is None:
                fits.writeto(path, image, fits.Header(dict(cards)))
            else:
                science = fits.ImageHDU(image, fits.Header(dict(cards)), name="SCI")
                fits.HDUList([fits.PrimaryHDU(header=fits.Header(dict(primary))), science]).writeto(path)

        return self.files((np.asarray(image, np.float32) for image in images), ".fits", save)


Maker = Callable[[Bench], Given]
VARIANTS: list[tuple[str, str, Maker]] = []
"""Kind, words and maker of every variant."""


def variant(kind: str, words: str) -> Callable[[Maker], Maker]:
    """Register a maker."""

    def register(make: Maker) -> Maker:
        VARIANTS.append((kind, words, make))
        return make

    return register


def scaled(images: Array, dtype: Any = np.float64) -> Array:
    """Each image (B, N, N) from 0 to 1."""
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    return ((images.astype(np.float64) - low) / (high - low)).astype(dtype)


def given(lenses: Simulated, images: Any = None, **known: Any) -> Given:
    return Given(lenses.images if images is None else images, lenses.labels, known)


# --- none ------------------------------------------------------------------------------------------------------------


@variant("-", "photon counts")
def _counts(bench: Bench) -> Given:
    return given(bench.lenses())


@variant("-", "min-max")
def _minmax(bench: Bench) -> Given:
    lenses = bench.lenses()
    return given(lenses, scaled(lenses.images))


# --- A: the sky's level from corners that arcs reach -----------------------------------------------------------------


def _angled(words: str, dtype: Any, **overrides: Any) -> None:
    @variant("A", words)
    def make(bench: Bench) -> Given:
        lenses = bench.lenses(**overrides)
        return given(lenses, scaled(lenses.images, dtype))


_anywhere = [-math.pi / 2, math.pi / 2]
_angled("arcs along a diagonal", np.float64, gamma_phi=math.pi / 4, source_phi=math.pi / 4)
_angled("arcs along the other", np.float64, gamma_phi=-math.pi / 4, source_phi=-math.pi / 4)
_angled("at every angle", np.float64, gamma_phi=_anywhere, source_phi=_anywhere)
_angled("at every angle, float32", np.float32, gamma_phi=_anywhere, source_phi=_anywhere)
_angled(
    "strongly sheared along a diagonal", np.float64, gamma_phi=math.pi / 4, source_phi=math.pi / 4, gamma=[0.2, 0.3]
)


# --- B: levels of a file format --------------------------------------------------------------------------------------


def _levels(words: str, top: int, save: Callable[[Bench, Array], Any]) -> None:
    @variant("B", words)
    def make(bench: Bench) -> Given:
        lenses = bench.lenses()
        return given(lenses, save(bench, np.rint(scaled(lenses.images) * top)))


def _pictures(suffix: str, dtype: Any, colour: bool = False) -> Callable[[Bench, Array], Any]:
    def save(image: Array, path: Path) -> None:
        picture = Image.fromarray(image.astype(dtype))
        (picture.convert("RGB") if colour else picture).save(path)

    return lambda bench, levels: bench.files(levels, suffix, save)


_levels("8-bit PNG", 255, _pictures(".png", np.uint8))
_levels("8-bit PNG, grey as colour", 255, _pictures(".png", np.uint8, colour=True))
_levels("16-bit PNG", 65535, _pictures(".png", np.uint16))
_levels("16-bit TIFF", 65535, _pictures(".tif", np.uint16))
_levels("an array of 8 bits", 255, lambda bench, levels: levels.astype(np.uint8))
_levels("an array that was of 8 bits", 255, lambda bench, levels: levels / 255)
_levels("an array that was of 8 bits, float32", 255, lambda bench, levels: (levels / 255).astype(np.float32))
_levels("an array that was of 12 bits", 4095, lambda bench, levels: levels / 4095)


# --- C: fields smaller than the network's ----------------------------------------------------------------------------


def _small(words: str, rows: int, columns: int, known: Mapping[str, Any], **overrides: Any) -> None:
    @variant("C", words)
    def make(bench: Bench) -> Given:
        lenses = bench.lenses(**overrides)
        top, left = ((side - want) // 2 for side, want in zip(lenses.images.shape[1:], (rows, columns)))
        return given(lenses, lenses.images[:, top : top + rows, left : left + columns], **known)


for _side in (110, 120, 130, 140):
    _small(f"{_side} pixels of 0.05 arcsec", _side, _side, {"pixel_scale": 0.05})
_small("120 x 150 pixels of 0.05 arcsec", 120, 150, {"pixel_scale": 0.05})
_small("64 pixels of 0.1 arcsec", 64, 64, {"pixel_scale": 0.1, "sky": 40.0}, n_pixels=64, pixel_scale=0.1,
       sersic_amplitude=400, sky=40)  # fmt: skip
_small("150 pixels of 0.04 arcsec", 150, 150, {"pixel_scale": 0.04}, pixel_scale=0.04)


# --- D: pixels without data ------------------------------------------------------------------------------------------


def _holes(bench: Bench, lenses: Simulated, side: int = 4) -> Array:
    """A square on the ring of each image, at any angle: True there."""
    n, scale = lenses.observation.n_pixels, lenses.observation.pixel_scale
    masks = np.zeros(lenses.images.shape, bool)
    for mask, theta_E, angle in zip(masks, lenses.truth.images["theta_E"], 2 * np.pi * bench.random.random(bench.n)):
        row, column = (round(n / 2 + theta_E / scale * f(angle)) for f in (np.sin, np.cos))
        mask[row - side // 2 : row + (side + 1) // 2, column - side // 2 : column + (side + 1) // 2] = True
    return masks


def _holed(words: str, give: Callable[[Bench, Array, Array], tuple[Any, dict[str, Any]]], side: int = 4) -> None:
    @variant("D", words)
    def make(bench: Bench) -> Given:
        lenses = bench.lenses()
        masks = _holes(bench, lenses, side)
        images, known = give(bench, lenses.images, masks)
        return given(lenses, images, **known)


def _blank(bench: Bench, images: Array, masks: Array) -> tuple[Any, dict[str, Any]]:
    def save(image: Array, path: Path) -> None:
        raw = np.where(np.isnan(image), -32768, image - 1000).astype(">i2")
        hdu = fits.PrimaryHDU(raw)
        hdu.header["BLANK"], hdu.header["BZERO"], hdu.header["BSCALE"] = -32768, 1000, 1
        hdu.writeto(path)

    return bench.files(np.where(masks, np.nan, images), ".fits", save), {}


def _quality(bench: Bench, images: Array, masks: Array) -> tuple[Any, dict[str, Any]]:
    def save(image: Array, path: Path) -> None:
        pixels, quality = np.split(image, 2)
        science = fits.ImageHDU(pixels[0].astype(np.float32), name="SCI")
        fits.HDUList([fits.PrimaryHDU(), science, fits.ImageHDU(quality[0].astype(np.int16), name="DQ")]).writeto(path)

    return bench.files(np.stack([np.where(masks, 400, images), masks * 4], 1), ".fits", save), {}


_holed(
    "numpy's masked arrays",
    lambda bench, images, masks: (list(np.ma.masked_array(np.where(masks, 400, images), masks)), {}),
)
_holed("a mask beside the images", lambda bench, images, masks: (np.where(masks, 400, images), {"mask": masks}))
_holed("NaN", lambda bench, images, masks: (np.where(masks, np.nan, images), {}))
_holed("a block of zeros", lambda bench, images, masks: (np.where(masks, 0, images), {}), side=6)
_holed("a saturated block", lambda bench, images, masks: (np.where(masks, 400, images), {}), side=6)
_holed("CCDData with a mask", lambda bench, images, masks: (
    [CCDData(image, unit="electron", mask=mask) for image, mask in zip(np.where(masks, 400, images), masks)], {"pixel_scale": 0.05}
))  # fmt: skip
_holed("BLANK with BZERO", _blank)
_holed("a DQ extension", _quality)


@variant("D", "a dead column")
def _dead_column(bench: Bench) -> Given:
    lenses = bench.lenses()
    images = lenses.images.copy()
    for image in images:
        image[:, bench.random.integers(40, 110)] = 0
    return given(lenses, images)


# --- E: pixel scales -------------------------------------------------------------------------------------------------

_STEP = 0.06  # arcsec
_DEGREES = _STEP / 3600
_SKY = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}


def _spelled(words: str, cards: Mapping[str, Any], primary: Mapping[str, Any] | None = None) -> None:
    @variant("E", words)
    def make(bench: Bench) -> Given:
        lenses = bench.lenses(pixel_scale=_STEP)
        return given(lenses, bench.fits(lenses.images, {"BUNIT": "electron", **cards}, primary))


_spelled("CDELT without CTYPE", {"CDELT1": -_DEGREES, "CDELT2": _DEGREES})
_spelled("CD in degrees", {**_SKY, "CD1_1": -_DEGREES, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": _DEGREES})
_spelled(
    "CUNIT spelled out", {**_SKY, "CUNIT1": "Degrees", "CUNIT2": "Degrees", "CDELT1": -_DEGREES, "CDELT2": _DEGREES}
)
_spelled("CUNIT arcsec", {**_SKY, "CUNIT1": "arcsec", "CUNIT2": "arcsec", "CDELT1": -_STEP, "CDELT2": _STEP})
_spelled("CUNITs that differ", {**_SKY, "CUNIT1": "arcsec", "CUNIT2": "deg", "CDELT1": -_STEP, "CDELT2": _DEGREES})
_spelled("PC without CDELT", {**_SKY, "PC1_1": -_DEGREES, "PC1_2": 0.0, "PC2_1": 0.0, "PC2_2": _DEGREES})
_spelled("PIXSCALE as text", {"PIXSCALE": f"{_STEP}"})
_spelled("LINEAR axes", {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR", "CUNIT1": "arcsec", "CUNIT2": "arcsec", "CDELT1": _STEP,
                         "CDELT2": _STEP})  # fmt: skip
_spelled("WCS in the primary", {}, {**_SKY, "CDELT1": -_DEGREES, "CDELT2": _DEGREES})
_spelled("no scale at all", {})


# --- F: off-centre ---------------------------------------------------------------------------------------------------


def _off(words: str, right: int, up: int, side: int = 150) -> None:
    """Cut from 160 pixels, so that real sky comes in at the edges; the centre lies `right` and `up` of the image's."""

    @variant("F", words)
    def make(bench: Bench) -> Given:
        lenses = bench.lenses(n_pixels=160)
        rows, columns = (slice(5 - by, 5 - by + side) for by in (up, right))
        return given(lenses, lenses.images[:, rows, columns], pixel_scale=0.05)


_off("half a pixel, at 149 pixels", 0, 0, 149)
_off("half a pixel the other way", 1, 1, 149)
_off("one pixel", 1, 0)
_off("two pixels along a diagonal", -2, 2)
_off("two and a half, at 149 pixels", -2, 0, 149)
_off("three pixels", 0, 3)
_off("five pixels", 5, 0)


@variant("F", "one pixel, min-max without a scale")
def _off_minmax(bench: Bench) -> Given:
    lenses = bench.lenses(n_pixels=160)
    return given(lenses, scaled(lenses.images[:, 5:155, 4:154]))


# --- G: header synonyms ----------------------------------------------------------------------------------------------

_GAIN, _SECONDS = 1.97, 600.0
_WCS = {**_SKY, "CDELT1": -0.05 / 3600, "CDELT2": 0.05 / 3600}


def _synonym(words: str, divisor: float, **cards: Any) -> None:
    """Values are photons over `divisor`."""

    @variant("G", words)
    def make(bench: Bench) -> Given:
        lenses = bench.lenses()
        return given(lenses, bench.fits(lenses.images / divisor, {**_WCS, **cards}))


_synonym("CCDGAIN beside ATODGAIN", _GAIN, BUNIT="COUNTS", CCDGAIN=2.0, ATODGAIN=_GAIN)
_synonym("EGAIN", _GAIN, BUNIT="adu", EGAIN=_GAIN)
_synonym("GAIN as text", _GAIN, BUNIT="ADU", GAIN=f"{_GAIN}")
_synonym("XPOSURE", _SECONDS, BUNIT="electron / s", XPOSURE=_SECONDS)
_synonym("EFFEXPTM", _SECONDS, BUNIT="ELECTRONS/S", EFFEXPTM=_SECONDS)
_synonym("EXPTIME as text", _SECONDS, BUNIT="e-/s", EXPTIME=f"{_SECONDS}")
_synonym("EXPTIME beside TEXPTIME", _SECONDS, BUNIT="electron / s", EXPTIME=_SECONDS / 4, TEXPTIME=_SECONDS)
_synonym("counts per second", _GAIN * _SECONDS, BUNIT="ct s-1", GAIN=_GAIN, EXPTIME=_SECONDS)


@variant("G", "a Quantity")
def _quantity(bench: Bench) -> Given:
    lenses = bench.lenses()
    rate = lenses.images / _SECONDS * units.electron / units.s
    return given(lenses, rate, exposure=_SECONDS * units.s, pixel_scale=50 * units.mas)


# --- H: PSFs ---------------------------------------------------------------------------------------------------------


def _kernel(step: float, profile: Callable[[Array], Array]) -> Array:
    """A point source's image on pixels of `step` arcsec, its light 1."""
    half = round(0.8 / step)
    axis = np.arange(-half, half + 1) * step
    light = profile(np.hypot(axis, axis[:, None]))
    return light / light.sum()


def _gaussian(sigma: float) -> Callable[[Array], Array]:
    return lambda r: np.exp(-0.5 * (r / sigma) ** 2)


def _moffat(beta: float, fwhm: float) -> Callable[[Array], Array]:
    core = fwhm / 2 / math.sqrt(2 ** (1 / beta) - 1)
    return lambda r: (1 + (r / core) ** 2) ** -beta


def _blurred(bench: Bench, kernel: Array) -> Simulated:
    """Lenses behind a PSF that is `kernel` on their pixels."""
    sharp = preset("deeplense", {"psf_sigma": 0.01})
    lenses = bench.lenses(psf_sigma=0.01)
    sky = sharp.observation.sky
    signal = render(lenses.truth, sharp, noise=False).numpy() - sky
    seen = np.stack([fftconvolve(image, kernel, "same") for image in signal])
    counts = bench.random.poisson(np.maximum(seen, 0) + sky).astype(np.float32)
    return Simulated(counts, lenses.labels, lenses.truth, lenses.observation)


def _psf_told(words: str, profile: Callable[[Array], Array], tell: Callable[[Bench], Any]) -> None:
    @variant("H", words)
    def make(bench: Bench) -> Given:
        lenses = _blurred(bench, _kernel(0.05, profile))
        return given(lenses, psf=tell(bench), pixel_scale=0.05, sky=10.0)


def _stpsf(bench: Bench) -> str:
    """The four extensions that STPSF writes."""
    fine, coarse = _kernel(0.0125, _gaussian(0.07)), _kernel(0.05, _gaussian(0.07))
    hdus = [fits.PrimaryHDU()]
    for name, kernel, step, over in (
        ("OVERSAMP", fine, 0.0125, 4),
        ("DET_SAMP", coarse, 0.05, 1),
        ("OVERDIST", fine, 0.0125, 4),
        ("DET_DIST", coarse, 0.05, 1),
    ):
        hdus.append(fits.ImageHDU(kernel, fits.Header({"PIXELSCL": step, "OVERSAMP": over}), name=name))
    path = bench.folder / "psf.fits"
    fits.HDUList(hdus).writeto(path)
    return str(path)


_psf_told("an array", _gaussian(0.07), lambda bench: _kernel(0.05, _gaussian(0.07)))
_psf_told("a number as text", _gaussian(0.07), lambda bench: "0.07")
_psf_told("a file of four extensions", _gaussian(0.07), _stpsf)
_psf_told("one of four extensions", _gaussian(0.07), lambda bench: f"{_stpsf(bench)}:DET_SAMP")
for _beta in (2.5, 4.0):
    _psf_told(f"Moffat of beta {_beta:g}", _moffat(_beta, 0.17), lambda bench, b=_beta: _kernel(0.05, _moffat(b, 0.17)))


# --- O: what the preset's constants do not describe ------------------------------------------------------------------


def _other(case: Case) -> None:
    @variant("O", case.words)
    def make(bench: Bench) -> Given:
        images, labels = simulated(case, bench.seed, bench.n, preset("deeplense").observation)
        return Given(images.float().numpy(), [CLASSES[label] for label in labels], {})


_AS_PUBLISHED = {"lens_q": 1.0, "lens_x": 0.0, "lens_y": 0.0, "sersic_n": 1.5, "sersic_R_e": 0.5, "snr": 900.0}
_AS_PUBLISHED |= {"image_psf_sigma": 0.08625, "psf_error": 0.0, "image_sky": 10.0, "second_component": 0.0}


def _surveyed(words: str, n_clumps: Any, light_peak: Any) -> None:
    @variant("O", words)
    def make(bench: Bench) -> Given:
        overrides = {**_AS_PUBLISHED, "n_clumps": n_clumps, "light_peak": light_peak}
        return given(simulate("survey", bench.n, bench.seed, overrides))


def _made_of(words: str, places: Array) -> None:
    """A source of small Gaussians at `places` (k, 2), arcsec from its centre, turned at random."""

    @variant("O", words)
    def make(bench: Bench) -> Given:
        lenses, kind = bench.lenses(), preset("deeplense")
        sky, truth = kind.observation.sky, lenses.truth
        angle = bench.random.uniform(0, 2 * math.pi, bench.n)
        cos, sin = np.cos(angle), np.sin(angle)
        expected = np.zeros(lenses.images.shape)
        for x, y in places:
            at = {"source_x": truth.images["source_x"] + cos * x - sin * y}
            at["source_y"] = truth.images["source_y"] + sin * x + cos * y
            images = truth.images.assign(**at, source_q=1.0, sersic_n=0.5, sersic_R_e=0.1, sersic_amplitude=200.0)
            expected += render(Truth(images, truth.subhalos), kind, noise=False).numpy() - sky
        return given(lenses, bench.random.poisson(expected + sky).astype(np.float32))


@variant("O", "the preset's own kind, under the marginal fit")
def _own_kind(bench: Bench) -> Given:
    return given(bench.lenses(), model="marginal")


for _case in cases(preset("deeplense").observation.psf_sigma):
    if _case.name not in ("deeplense", "random_orientation"):
        _other(_case)
_surveyed("1 to 6 clumps in the source", [1.0, 7.0], 0.5)
_surveyed("the lens galaxy's own light", 0.0, {"kind": "log-uniform", "low": 1.0, "high": 50.0})
_turn = np.linspace(0, 2 * math.pi, 12, endpoint=False)
_made_of("a ring-shaped source", 0.3 * np.stack([np.cos(_turn), np.sin(_turn)], 1))
_arm = np.linspace(0.05, 0.45, 7)
_arms = [_arm * f(6 * _arm + start) for start in (0, math.pi) for f in (np.cos, np.sin)]
_made_of("a source of two spiral arms", np.concatenate([np.stack(_arms[:2], 1), np.stack(_arms[2:], 1)]))


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """Of the images of a variant or kind; `answers` holds the true class, label and probabilities of each, if answered."""

    tried: int = 0
    right: int = 0
    flagged: int = 0
    wrong: int = 0
    answers: pd.DataFrame | None = field(default=None, compare=False)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    @cached_property
    def scores(self) -> dict[str, Measured]:
        """Value, interval and number of images of what the probabilities and labels are worth, whether flagged or not."""
        assert self.answers is not None
        true = self.answers["true"].map(CLASSES.index)
        measured = with_intervals(true, self.answers[list(CLASSES)], 1000, 1)
        found = {words: (*measured[name].values(), self.tried) for name, words in _SCORES.items()}
        smooth = self.answers["label"][true == 0]
        for words, where in zip(_SHARES, (~smooth.isin(["", "no"]), self.answers["label"] != ""), strict=True):
            found[words] = (float(where.mean()), *wilson(int(where.sum()), len(where)), len(where))
        return found

    def values(self) -> tuple[int, int, int, int]:
        return self.tried, self.right, self.flagged, self.wrong


def tally(model: Model, asked: Given) -> Tally:
    """What becomes of the images; all of them are flagged where the call is refused."""
    n = len(asked.labels)
    try:
        answer = model.predict(asked.images, **asked.known)
    except D4LensError:
        return Tally(n, 0, n, 0)
    flagged = [bool(flag) or not label for label, flag in zip(answer.labels, answer.flags, strict=True)]
    right = [label == true for label, true in zip(answer.labels, asked.labels, strict=True)]
    wrong = sum(not good and not marked for good, marked in zip(right, flagged, strict=True))
    answers = pd.DataFrame(answer.probabilities, columns=list(CLASSES)).assign(true=asked.labels, label=answer.labels)
    return Tally(n, n - sum(flagged) - wrong, sum(flagged), wrong, answers)


def measure(kinds: Sequence[str], images: int, seed: int, model: Model) -> dict[tuple[str, str], Tally]:
    """A tally of every variant of `kinds`; `images` of a kind, shared among its variants in threes, one for each class."""
    found = {}
    chosen = [one for one in VARIANTS if one[0] in kinds]
    for i, (kind, words, make) in enumerate(with_progress(chosen, desc="variants")):
        n = 3 * round(images / 3 / sum(other == kind for other, _, _ in chosen))
        n = max(_LEAST if kind == _SCORED else 3, n)
        with tempfile.TemporaryDirectory() as folder:
            found[kind, words] = tally(model, make(Bench(n, seed + i, Path(folder))))
    return found


def scored(found: Mapping[tuple[str, str], Tally]) -> dict[str, dict[str, Measured]]:
    """The scores of each variant of the scored kind that was answered."""
    return {words: t.scores for (kind, words), t in found.items() if kind == _SCORED and t.answers is not None}


def by_kind(found: Mapping[tuple[str, str], Tally]) -> dict[str, Tally]:
    """The variants of each kind together."""
    return {kind: sum((t for (of, _), t in found.items() if of == kind), Tally()) for kind, _ in found}


def summarise(found: Mapping[tuple[str, str], Tally], command: str) -> Outcome:
    """The figures with Wilson's intervals: a record a kind, and one a variant."""
    records = []
    for (kind, words), counted in [((kind, ""), t) for kind, t in by_kind(found).items()] + list(found.items()):
        for name, number in zip(("right", "flagged", "wrong and unflagged"), counted.values()[1:], strict=True):
            low, high = wilson(number, counted.tried)
            records.append(
                record(number / counted.tried, low, high, counted.tried, kind=kind, variant=words, quantity=name)
            )
    for words, scores in scored(found).items():
        for name, measured in scores.items():
            records.append(record(*measured, kind=_SCORED, variant=words, quantity=name))
    over = [kind for kind, t in by_kind(found).items() if t.wrong > TARGET * t.tried]
    answer = f"At most {TARGET:.0%} of each kind are wrong and unflagged" + (
        f", but for {', '.join(over)}." if over else "."
    )
    return Outcome(
        question="How often does an image that a user is likely to bring get a wrong answer without a flag?",
        answers=[answer],
        cannot_tell=[
            f"All images are simulated; `{command}` makes them.",
            "The variants are those that somebody has thought of.",
        ],
        records=records,
    )


def table(found: Mapping[tuple[str, str], Tally]) -> str:
    """The kinds in Markdown; where a kind misses the target, its variants that do are named."""
    lines = ["| kind | images | right | flagged | wrong and unflagged | |", "|---|---:|---:|---:|---:|---|"]
    for kind, counted in by_kind(found).items():
        share = f"{counted.wrong} ({counted.wrong / counted.tried:.1%})"
        bad = [f"{words} ({t.wrong} of {t.tried})" for (of, words), t in found.items() if of == kind and t.wrong]
        where = "; ".join(bad) if counted.wrong > TARGET * counted.tried else ""
        name = KINDS[kind] if kind == "-" else f"{kind}. {KINDS[kind]}"
        lines.append(f"| {name} | {counted.tried} | {counted.right} | {counted.flagged} | {share} | {where} |")
    if of_kind := scored(found):
        head = [KINDS[_SCORED], *_SCORES.values(), *_SHARES]
        lines += ["", f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
        for words, scores in of_kind.items():
            cells = (f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high, _ in scores.values())
            lines.append(f"| {' | '.join((words, *cells))} |")
    return "\n".join(lines)


def update(page: str, made: str) -> str:
    """The page with the table between its markers. Raises D4LensError where they are not there, once each."""
    if page.count(_BEGIN) != 1 or page.count(_END) != 1:
        raise D4LensError(f"the page needs the markers {_BEGIN} and {_END}, once each")
    return re.sub(f"{_BEGIN}.*?{_END}", lambda _: f"{_BEGIN}\n{made}\n{_END}", page, flags=re.S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--images", type=int, default=180, help="about how many of each kind (default: 180)")
    parser.add_argument("--seed", type=int, default=_SEED)
    chosen = parser.parse_args()
    found = measure(chosen.kinds, chosen.images, chosen.seed, load_model())
    for (kind, words), counted in found.items():
        print(
            f"{kind} {words}: {counted.right} right, {counted.flagged} flagged, {counted.wrong} wrong of {counted.tried}"
        )
    made = table(found)
    print(made)
    if chosen.kinds != list(KINDS):
        return
    page = _ROOT / "docs" / "reliability.md"
    try:
        text = update(page.read_text(encoding="utf-8"), made)
    except D4LensError as error:
        sys.exit(f"field_faults: {page.name}: {error}")
    write_outcome(
        _ROOT / "metrics" / "reliability.json",
        summarise(found, f"python tools/field_faults.py --images {chosen.images}"),
    )
    write_text(page, text)


if __name__ == "__main__":
    main()
