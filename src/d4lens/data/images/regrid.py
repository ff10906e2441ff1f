"""An image of any size, pixel scale and unit -> photon counts on the pixels that a network knows.

What the fit's likelihood assumes of the result is Poisson: each pixel's variance is its mean, sky included. Where a noise
map is given, it goes the same way as the image, and the values need be no photons. Whole
multiples of the pixel keep that exactly (pixels are summed); any other pixel scale is resampled by the areas' overlap,
which conserves flux and the noise of any patch larger than a pixel but correlates neighbours, so that chi2 per pixel
falls below 1 by the factor that `Prepared.noise` gives.
"""

from dataclasses import dataclass, replace
from math import hypot

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from d4lens.data.images.counts import (
    COUNTS,
    FULL_SCALE,
    MIN_SIDE,
    NORMALISED,
    Counts,
    dark_sky,
    normalised,
    recover_counts,
)
from d4lens.data.images.formats import Array, Raw
from d4lens.data.images.headers import TOLERANCES, Header, counting_unit
from d4lens.data.images.instruments import Instrument
from d4lens.data.images.masks import dead, without
from d4lens.data.images.psf import Gaussians, Psf, with_variance
from d4lens.errors import D4LensError
from d4lens.flags import Flag, Raised
from d4lens.observation import Observation, bin_pixels

_COVERED = 0.999  # share of a pixel of the grid below which it holds no data; the rest is rounding
SAME_SCALE = 2e-3  # relative difference of pixel scales taken for none: 0.03 pixels at the ring
_GAIN_ONE = 0.25  # variance over mean less 1 that is taken for a gain of 1: five times its scatter
_POISSON = (
    0.6,
    1.6,
)  # variance over mean of a sky that is taken for photons; that of 48 x 48 pixels scatters by a tenth
# Sigma of a pixel. Of simulated smooth lenses whose PSF is Gaussian but for wings, none was called structured below 0.5;
# from 0.65 on, where a Moffat of beta 8 lies, a quarter were, at 1.2 (beta 4.7) all. The image stands for what the PSF
# blurs, blurred as it is, so the true residual is larger.
_PSF_RESIDUAL = 0.4
_BEHIND = 2.0  # pixels, sigma of the mean of those with data that stands for one without
_SKY = 100.0  # counts a pixel that stand for the background where a noise map gives the weights
_AGREE = 0.25  # relative difference of two ways to the photon scale; of 150 x 150 pixels it scatters by a twentieth


@dataclass(frozen=True)
class Prepared:
    """An image ready to be fitted.

    Attributes
    ----------
    pixels: (N, N) photon counts with their sky if `units` is "counts"; from 0 to 1 if "normalised"; NaN where there are no
        data: outside the image, or masked.
    units: "counts", or "normalised" where no photon counts can be had.
    counts: the native image's lattice, before binning; None where it was not looked for.
    standard: the image is as the published ones are, so all that the preset knows holds for it.
    sky: mean sky counts per pixel of the grid (0 if normalised); `sky_known` says that the user gave it.
    psf_sigma: arcsec, standard deviation of the PSF as the grid's pixels show it, their own width included.
    psf_shape: share of the light and standard deviation of each of the PSF's Gaussians, in units of `psf_sigma`.
    centre: (x, y) arcsec of the image's centre on the grid: half a pixel off where an odd number of pixels was cut.
    noise: variance over mean of the sky on the grid: 1, less where resampling has averaged neighbours.
    pixel_scale: arcsec per pixel of the image as it came.
    rough: its photon scale is known by the sky's noise alone, to a few per cent.
    lift: (N, N) by how much each pixel grows if the faintest native pixel holds one count more; None where that is known.
    notes: what was done, in words.
    flags: what to beware of that shows before the fit.
    variance: (N, N) of the pixels, infinite where there are no data; None where it is the photons' own.
    exact: its pixels are the grid's, or summed to them.
    grid: the pixels.
    """

    pixels: Array
    units: str
    standard: bool
    sky: float
    sky_known: bool
    psf_sigma: float
    psf_shape: Gaussians
    centre: tuple[float, float]
    noise: float
    pixel_scale: float
    rough: bool
    lift: Array | None
    notes: tuple[str, ...]
    grid: Observation
    counts: Counts | None = None
    exact: bool = True
    variance: Array | None = None
    flags: tuple[Raised, ...] = ()


@dataclass(frozen=True)
class _Photons:
    """Photons per native pixel with their sky, or the values as they are where `units` is "normalised".

    `raised` where the count of the faintest pixel is only estimated, `rough` where the photon scale is. `variance` (H, W) is
    known from a noise map. `flags` are doubts about the photons.
    """

    values: Array
    units: str
    standard: bool
    sky: float
    notes: tuple[str, ...]
    raised: bool = False
    rough: bool = False
    variance: Array | None = None
    counts: Counts | None = None
    flags: tuple[Raised, ...] = ()


@dataclass(frozen=True)
class _Axis:
    """One axis's way to the grid.

    `matrix` (N, n) takes flux from n pixels, `covered` (N,) is the share of each of the grid's pixels that the image
    reaches, `start`:`stop` are the pixels used, `centre` is arcsec of the image's centre.
    """

    matrix: Array
    covered: Array
    start: int
    stop: int
    centre: float


def prepare(
    raw: Raw,
    grid: Observation,
    instrument: Instrument = Instrument(),  # noqa: B008 - frozen
    *,
    whole: bool = False,
) -> Prepared:
    """Bring an image to photon counts on the pixels of a grid: the one route, for training and for prediction.

    Pixel scale: given, else the header's, else such that the image has the grid's field of view, where it has a whole
    multiple of its pixels. Finer pixels that divide the grid's are summed, any others resampled. What lies outside the
    field is cut.

    Photons: `instrument.gain` or `instrument.exposure`, else the header's unit, else the lattice of counts that the values lie on.
    Where all fail, and where neither the user nor the grid knows a sky, units are "normalised".

    No data are in what the image does not reach, in pixels that are not finite, and in those that show what no light
    makes (`masks.dead`). A pixel of the grid that any of these shines into holds none. They say nothing of the image's
    noise, sky or levels.

    Parameters
    ----------
    raw : Raw
        The image (H, W), NaN where it holds no data, and its header.
    grid : Observation
        The grid that a network knows; its sky and PSF are the image's where nothing else is known.
    instrument : Instrument
        What the user knows of the image.
    whole : bool
        Whether every pixel that is finite holds data, whatever it shows: as training takes a published set.

    Returns
    -------
    Prepared
        Flagged where the pixel scale is guessed and not all else is as the published images have it, where the header's
        statements disagree, where a gain is assumed, and where the PSF is no Gaussian.

    Raises
    ------
    D4LensError
        Saying what does not fit.
    """
    image, n = raw.pixels, grid.n_pixels
    if min(image.shape) < MIN_SIDE:
        raise D4LensError(f"it is {_size(image)} pixels; at least {MIN_SIDE} a side are needed")
    scale, notes = _scale(raw, grid, instrument)
    factor = grid.pixel_scale / scale
    exact = round(factor) >= 1 and abs(factor / round(factor) - 1) < SAME_SCALE
    ratio = float(round(factor)) if exact else factor
    axes = [_whole(side, n, round(factor), scale) if exact else _overlap(side, n, factor) for side in image.shape]
    rows, columns = axes
    image, good = _with_data(image, rows, columns, whole)
    used = np.s_[rows.start : rows.stop, columns.start : columns.stop]
    if raw.noise is not None:
        photons = _by_noise(image, np.where(good, raw.noise[used], np.inf))
    else:
        photons = _photons(image, raw.header, instrument, grid.sky / ratio**2)
    notes += photons.notes
    cut = photons.values
    if cut.shape == raw.pixels.shape:
        cut = cut[used]
    if hidden := good.size - int(good.sum()):
        notes += (f"{hidden} pixels masked",)
    if exact:
        pixels, how = (
            _sum(cut, n, round(factor), photons.sky),
            _how(raw.pixels.shape, axes, round(factor), n),
        )
        seen = _sum(good, n, round(factor), 0) == round(factor) ** 2
        variance = None if photons.variance is None else _sum(photons.variance, n, round(factor), 1.0)
        noise, broadened = 1.0, (grid.pixel_scale**2 - scale**2) / 12
    else:
        down, across = (axis.matrix[:, axis.start : axis.stop] for axis in axes)
        pixels = down @ np.where(good, cut, 0.0) @ across.T
        seen = down @ good.astype(np.float64) @ across.T > _COVERED * ratio**2
        noise = _shared(rows) * _shared(columns)
        variance = None
        if photons.variance is not None:
            variance, noise = down**2 @ np.where(good, photons.variance, 0.0) @ (across**2).T, 1.0
        broadened = (grid.pixel_scale**2 + scale**2) / 12
        how = (
            f"resampled from {_size(raw.pixels)} pixels of {scale:g} arcsec to {n} of {grid.pixel_scale:g} by overlap",
            "neighbours share noise" + (f": chi2 of a true model is {noise:.2f}" if variance is None else ""),
            *_edges(raw.pixels.shape, (n * factor, n * factor)),
        )
    if not seen.any():
        raise D4LensError("no pixel within the field of view holds data; check the mask, or cut out the lens")
    known = instrument.psf or Psf(grid.psf_sigma)
    psf = known.arcsec(scale)
    psf_sigma, psf_shape = with_variance(psf, known.shape, broadened)
    if instrument.psf is not None:
        notes += (f"PSF sigma {psf:.4g} arcsec", *instrument.psf.notes)
    guessed = instrument.pixel_scale is None and raw.header.pixel_scale is None and not photons.standard
    flags: tuple[Raised, ...] = (Raised(Flag.SCALE_GUESSED),) if guessed else ()
    if instrument.psf is not None and instrument.psf.disputed:
        flags += (Raised(Flag.PSF_HEADER_DISAGREES, instrument.psf.disputed),)
    pixels = np.where(seen, pixels, np.nan)
    if variance is not None:
        variance = np.where(seen, variance, np.inf)
    if (
        instrument.psf is not None
        and _psf_residual(pixels, variance, photons, ratio, instrument.psf, scale, grid) > _PSF_RESIDUAL
    ):
        flags += (Raised(Flag.NOT_ROUND),)
    if photons.units == NORMALISED:
        pixels = normalised(pixels)
    square = raw.pixels.shape[0] == raw.pixels.shape[1]
    nothing_given = (
        instrument.pixel_scale is None
        and raw.header.pixel_scale is None
        and instrument.psf is None
        and instrument.sky is None
    )
    published = exact and nothing_given and square
    return Prepared(
        pixels=pixels.astype(np.float32),
        units=photons.units,
        standard=photons.standard and published,
        sky=photons.sky * ratio**2 if photons.units == COUNTS else 0.0,
        sky_known=instrument.sky is not None and photons.units == COUNTS,
        psf_sigma=psf_sigma,
        psf_shape=psf_shape,
        centre=(columns.centre, rows.centre),
        noise=noise,
        pixel_scale=scale,
        rough=photons.rough,
        lift=np.where(seen, ratio**2, 0.0).astype(np.float32) if photons.raised else None,
        notes=(*notes, *how),
        grid=grid,
        counts=photons.counts,
        exact=exact,
        variance=None if variance is None else variance.astype(np.float32),
        flags=(*flags, *_disputes(raw, instrument), *photons.flags),
    )


def _by_noise(image: Array, noise: Array) -> _Photons:
    """Scale values (H, W) so that a noise map, infinite where there are no data, is that of _SKY photons in its median pixel."""
    mean = dark_sky(image)[0]
    factor = _SKY**0.5 / float(np.median(noise[np.isfinite(noise)]))
    note = f"noise by its map: counts = (values - {mean:.4g}) x {factor:.4g} + {_SKY:g}"
    values = (image.astype(np.float64) - mean) * factor + _SKY
    return _Photons(values, COUNTS, False, _SKY, (note,), variance=(noise * factor) ** 2)


def _psf_residual(
    pixels: Array,
    variance: Array | None,
    photons: _Photons,
    ratio: float,
    psf: Psf,
    scale: float,
    grid: Observation,
) -> float:
    """Return the residual, in sigma of a pixel, that the PSF's Gaussians would leave of what stands out of the noise."""
    sky = photons.sky * ratio**2
    if photons.units == NORMALISED:
        # As bright as such an image is taken to be.
        pixels = (pixels - sky) * (FULL_SCALE / max(float(np.nanmax(pixels)) - sky, 1e-30))
        sky = 0.0
    # Pixels without data show no residual. Light goes on behind them: a hole's edge would leave one of its own.
    seen = np.isfinite(pixels)
    variance = np.where(seen, np.maximum(pixels, 1.0) if variance is None else variance, np.inf)
    light = np.where(seen & (pixels - sky > 3 * np.sqrt(variance)), pixels - sky, 0.0)
    if not seen.all():
        near = gaussian_filter(seen.astype(float), _BEHIND)
        light = np.where(seen, light, gaussian_filter(light, _BEHIND) / np.maximum(near, 1e-3))
    return psf.residual(light, variance, scale, grid.pixel_scale)


def _scale(raw: Raw, grid: Observation, instrument: Instrument) -> tuple[float, tuple[str, ...]]:
    """Arcsec per pixel of the image, and where it comes from."""
    header = raw.header
    if instrument.pixel_scale is not None:
        against = header.unread or (f"its header says {header.pixel_scale:.5g}" if header.pixel_scale else "")
        if header.pixel_scale and abs(instrument.pixel_scale / header.pixel_scale - 1) < TOLERANCES["pixel scale"]:
            against = ""
        return instrument.pixel_scale, (
            f"pixel scale {instrument.pixel_scale:g} arcsec as given",
            *([against] if against else []),
        )
    if header.unread:
        raise D4LensError(header.unread)
    if header.pixel_scale is not None:
        return header.pixel_scale, (
            f"pixel scale {header.pixel_scale:.5g} arcsec by the header{header.said('pixel scale')}",
        )
    factor, rest = divmod(len(raw.pixels), grid.n_pixels)
    if rest or not factor or raw.pixels.shape[0] != raw.pixels.shape[1]:
        side = f"{len(raw.pixels)}" if raw.pixels.shape[0] == raw.pixels.shape[1] else _size(raw.pixels)
        raise D4LensError(
            f"it is {side} pixels a side; this model takes {grid.n_pixels} pixels of {grid.pixel_scale:g} arcsec or a "
            "whole multiple, which is binned; give --pixel-scale ARCSEC to have it resampled"
        )
    scale = grid.pixel_scale / factor
    return scale, (f"pixel scale taken to be {scale:g} arcsec",)


def _whole(side: int, n: int, factor: int, scale: float) -> _Axis:
    """Return the pixels of an axis of `side` that a grid of n pixels of `factor` of them takes about its centre."""
    want = n * factor
    start = max(0, (side - want) // 2)
    stop = min(side, start + want)
    before = (want - (stop - start)) // 2
    centre = (side / 2 - start + before - want / 2) * scale
    return _Axis(np.empty((0, 0)), np.empty(0), start, stop, centre)


def _overlap(side: int, n: int, factor: float) -> _Axis:
    """Share of each of `side` pixels' flux that falls into each of n pixels, `factor` times as wide, about one centre."""
    edges = (np.arange(n + 1) - n / 2) * factor + side / 2
    pixel = np.arange(side)
    shared = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    matrix = np.clip(shared, 0, None)
    used = np.flatnonzero(matrix.any(0))
    return _Axis(matrix, matrix.sum(1) / factor, int(used[0]), int(used[-1]) + 1, 0.0)


def _shared(axis: _Axis) -> float:
    """Return the variance over mean that resampling gives white noise of variance 1 over mean 1, along an axis.

    It is the mean of the pixels that the axis covers.
    """
    inside = axis.matrix[axis.covered > 0.999] if (axis.covered > 0.999).any() else axis.matrix
    return float(((inside**2).sum(1) / inside.sum(1)).mean())


def _with_data(image: Array, rows: _Axis, columns: _Axis, whole: bool) -> tuple[Array, NDArray[np.bool_]]:
    """Find the pixels without data.

    Returns the image, or its used part with NaN in them if any pixel holds none, and which of the used pixels hold data.
    Raises D4LensError for an image without data or contrast.
    """
    used = image[rows.start : rows.stop, columns.start : columns.stop]
    unseen = ~np.isfinite(used)
    if not whole:
        unseen |= dead(image)[rows.start : rows.stop, columns.start : columns.stop]
    if unseen.all():
        raise D4LensError("no pixel within the field of view holds data; check the mask, or cut out the lens")
    if unseen.any() or not np.isfinite(image).all():
        image = without(used, unseen)
    if np.nanmin(image) == np.nanmax(image):
        raise D4LensError(f"it is constant: every pixel is {np.nanmin(image):g}; it holds no image")
    return image, ~unseen


def _photons(image: Array, header: Header, instrument: Instrument, sky: float) -> _Photons:
    """Return the image (H, W) in photons with their sky, whose mean per pixel is `sky` where nothing else is known."""
    factor, notes = _photons_per_unit(header, instrument)
    if factor is not None:
        unit, values = counting_unit(header.unit), image * factor
        mean, variance, _ = dark_sky(values)
        assumed = unit is not None and unit.base == "count" and instrument.gain is None and header.gain is None
        photons = _levelled(values, mean, variance, instrument.sky, notes)
        return replace(photons, flags=_doubts(mean, variance, factor, assumed))
    if instrument.gain is None and instrument.exposure is None and not notes:
        if not (instrument.sky or sky):
            notes = ("no photon counts: no sky is known",)
        else:
            counts = recover_counts(image, instrument.sky or sky)
            if counts.is_counts:
                return replace(_from_lattice(image, counts, instrument.sky, sky), counts=counts)
            if counts.noise is not None:
                return replace(_from_levels(image, counts, instrument.sky or sky), counts=counts)
            notes = ("no photon counts: the values lie on no lattice of them",)
    return _Photons(image.astype(np.float64), NORMALISED, False, dark_sky(image)[0], notes)


def _from_lattice(image: Array, counts: Counts, given_sky: float | None, expected: float) -> _Photons:
    unseen = np.isnan(image)
    k = without(counts.k, unseen)
    mean, variance, _ = dark_sky(k)
    if np.array_equal(k, image, equal_nan=True):
        if given_sky is not None:
            return _levelled(k, mean, variance, given_sky, ("values taken for photon counts",))
        if not _POISSON[0] * mean < variance < _POISSON[1] * mean:
            return _Photons(image.astype(np.float64), NORMALISED, False, mean, (_no_photons(mean, variance),))
        if _POISSON[0] * expected < mean < _POISSON[1] * expected:
            return _Photons(k, COUNTS, True, expected, ("values taken for photon counts",))
        return _Photons(k, COUNTS, False, mean, (f"values taken for photon counts, sky {mean:.4g} measured",))
    if given_sky is not None or _POISSON[0] * expected < variance < _POISSON[1] * expected:
        sky = given_sky or expected
        return _Photons(k, COUNTS, given_sky is None, sky, ("photon counts recovered",), True)
    k = without(recover_counts(image, variance).k, unseen)
    return _Photons(k, COUNTS, False, variance, (f"photon counts recovered, sky {variance:.4g} by its variance",))


def _from_levels(image: Array, counts: Counts, sky: float) -> _Photons:
    """Photons of values that were rounded to a file format's levels, more than a photon each.

    The sky's known mean gives the levels that a photon makes by the sky's variance, less that of the rounding. The growth of the
    variance with the mean gives them without a sky; where the two disagree, there is no photon scale.
    """
    noise = counts.noise
    assert noise is not None
    per_photon = (max(noise.variance - 1 / 12, 0.0) / sky) ** 0.5
    tolerance = max(_AGREE * per_photon, 4 * noise.gain_sigma)
    if abs(noise.gain - per_photon) > tolerance or noise.gain <= 4 * noise.gain_sigma:
        values = image[~np.isnan(image)]
        whole = image.dtype.kind in "iu" or bool((values == np.rint(values)).all())
        note = _no_photons(noise.mean + float(values.min()), noise.variance) if whole else _NO_SCALE
        return _Photons(image.astype(np.float64), NORMALISED, False, dark_sky(image)[0], (note,))
    # The rounding's variance counts as that of so many photons of sky more, so that the noise is Poisson's.
    sky += 1 / (12 * per_photon**2)
    photons = (without(counts.k, np.isnan(image)) - counts.k_min - noise.mean) / per_photon + sky
    note = f"photon counts by the sky's noise: the values are a file format's levels, {per_photon:.3g} a photon"
    return _Photons(photons, COUNTS, True, sky, (note,), rough=True)


_NO_SCALE = "no photon counts: the values are a file format's levels, and their noise gives no photon scale"


def _no_photons(mean: float, variance: float) -> str:
    return (
        f"no photon counts: whole numbers, but the sky's variance {variance:.3g} is not its mean {mean:.3g}; "
        "give --gain and --sky if they are a camera's"
    )


def _levelled(values: Array, mean: float, variance: float, sky: float | None, notes: tuple[str, ...]) -> _Photons:
    """Photons, whose sky has this mean and variance, raised to the sky that their noise is from where it was subtracted."""
    if sky is not None:
        lift = sky - mean if abs(sky - mean) > 0.02 * sky else 0.0
    elif _POISSON[0] * mean < variance < _POISSON[1] * mean:
        sky, lift = mean, 0.0
    else:
        # A sky without noise cannot be weighed: one photon stands for it.
        sky = max(variance, 1.0)
        lift = sky - mean
    if lift:
        notes += (f"raised by {lift:.4g} photons to a sky of {sky:.4g}",)
    return _Photons(values + lift if lift else values, COUNTS, False, sky, notes)


def _photons_per_unit(header: Header, instrument: Instrument) -> tuple[float | None, tuple[str, ...]]:
    """Return the factor from values to photons and what it comes from; None where nothing, or not enough, is known."""
    unit = counting_unit(header.unit)
    said = instrument.gain is not None or instrument.exposure is not None
    if not said and not header.unit and header.gain is None:
        return None, ()
    if not said and header.unit and unit is None:
        return None, (f"no photon counts: the unit {header.unit} is none of them; give --gain photons per unit",)
    electrons, digital = (unit is not None and unit.base == base for base in ("electron", "adu"))
    gain, of_gain = instrument.gain, ""
    if gain is None and not electrons:
        gain, of_gain = header.gain, header.said("gain")
    if gain is None:
        if digital and not said:
            return None, (f"no photon counts: in {header.unit}, whose gain the header does not tell; give --gain",)
        gain = 1.0
    rate = unit is not None and unit.rate
    exposure, of_exposure = instrument.exposure, ""
    if exposure is None:
        exposure, of_exposure = (header.exposure, header.said("exposure")) if rate else (1.0, "")
    if exposure is None:
        return None, (f"no photon counts: a rate in {header.unit} without exposure; give --exposure SECONDS",)
    of = f" of {exposure:g} s{of_exposure}" if rate or instrument.exposure is not None else ""
    factor = gain * exposure * (unit.factor if unit is not None else 1.0)
    return factor, (f"photons = values x {factor:.6g} (gain {gain:g}{of_gain}{of})",)


def _disputes(raw: Raw, instrument: Instrument) -> tuple[Raised, ...]:
    """Return flags for what the header says twice and differently, as far as it is used."""
    header, photons = raw.header, raw.noise is None
    unit = counting_unit(header.unit)
    used = {
        "pixel scale": instrument.pixel_scale is None,
        "gain": photons and instrument.gain is None and not (unit is not None and unit.base == "electron"),
        "exposure": photons and instrument.exposure is None and unit is not None and unit.rate,
    }
    said = (header.disputed(quantity) for quantity, asked in used.items() if asked)
    return tuple(Raised(Flag.HEADER_DISAGREES, what) for what in said if what)


def _doubts(mean: float, variance: float, factor: float, assumed: bool) -> tuple[Raised, ...]:
    """Return a flag where mean and variance of the sky, which are equal for photons, contradict the photons per unit.

    They are in photons, `factor` of them a unit; `assumed` says that nothing tells the gain.
    """
    if assumed:
        return () if abs(variance - mean) < _GAIN_ONE * mean else (Raised(Flag.GAIN_ASSUMED),)
    already = abs(variance / factor - mean) < _GAIN_ONE * mean and abs(factor - 1) > _GAIN_ONE
    return (Raised(Flag.PHOTONS_ALREADY),) if already else ()


def _sum(cut: Array, n: int, factor: int, sky: float) -> Array:
    """Blocks of factor x factor pixels summed onto (n, n), what is missing all round filled with the sky."""
    want = n * factor
    if cut.shape != (want, want):
        full = np.full((want, want), sky)
        top, left = ((want - side) // 2 for side in cut.shape)
        full[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
        cut = full
    return bin_pixels(cut.astype(np.float64), factor)


def _how(whole: tuple[int, ...], axes: list[_Axis], factor: int, n: int) -> tuple[str, ...]:
    notes = _edges(whole, (n * factor, n * factor))
    if any(axis.centre for axis in axes):
        off = hypot(*(axis.centre for axis in axes))
        notes += (f"its centre lies {off:.3g} arcsec off the grid's, an odd number of pixels having gone",)
    return (*notes, f"binned {factor} x {factor}") if factor > 1 else notes


def _edges(shape: tuple[int, ...], want: tuple[float, ...]) -> tuple[str, ...]:
    cut = any(side > target + 0.5 for side, target in zip(shape, want))
    short = any(side < target - 0.5 for side, target in zip(shape, want))
    size = f"{shape[1]} x {shape[0]} {'to' if cut else 'of'} {want[1]:.4g} x {want[0]:.4g} pixels"
    if cut and short:
        return (f"cut from {size}, of which not all hold data",)
    return (f"cut from {size}",) if cut else (f"no data beyond {size}",) if short else ()


def _size(image: Array) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
