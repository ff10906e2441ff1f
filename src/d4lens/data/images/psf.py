"""The PSF: a Gaussian's width, given as a number, or round Gaussians fitted to the image of a point source."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d4lens.data.images.formats import Array, Raw
from d4lens.data.images.sources import file_and_band, read_raw
from d4lens.errors import D4LensError

_MISFIT = 0.1  # light of a PSF, as a share of all, in other places than the fitted Gaussians': above, it is said
_ONE = 0.02  # the same share up to which a single Gaussian is enough
_WIDTHS, _NARROWEST, _WIDEST = 8, 0.5, 8.0  # Gaussians to choose from, and their range in widths of the single one
_LEAST = 0.005  # share of the light below which a Gaussian is left out
_FAINT = 1e-3  # of the peak, below which the PSF's light is fitted as if it were this bright
_NEGATIVE = 0.05  # depth of the deepest pixel over the peak's height, beyond noise, that no PSF has
_CALCULATED = ("DET_DIST", "DET_SAMP", "OVERDIST", "OVERSAMP")  # STPSF's extensions, as the detector shows it first


Gaussians = tuple[tuple[float, float], ...]
"""Share of the light and width of each of a PSF's round, concentric Gaussians; the width in units of a given one."""


@dataclass(frozen=True)
class Psf:
    """A PSF of round, concentric Gaussians.

    Attributes
    ----------
    sigma: standard deviation of the single Gaussian nearest to it, in arcsec, or in the image's pixels if `in_pixels`.
    note: what it is not, to be said aloud.
    how: what was done to the image that it was measured in.
    disputed: statements of that image's header that disagree.
    shape: share of the light and standard deviation of each of its Gaussians, in units of `sigma`.
    image, model: (h, w) that image and the Gaussians fitted to it, the light of each 1, centred on the middle pixel
        to a fraction `centre` (x, y); None where it was given as a number.
    step: arcsec, or pixels of the image if `in_pixels`, of one pixel of these.
    """

    sigma: float
    in_pixels: bool = False
    note: str = ""
    how: tuple[str, ...] = field(default=(), compare=False)
    disputed: str = field(default="", compare=False)
    image: Array | None = field(default=None, compare=False, repr=False)
    model: Array | None = field(default=None, compare=False, repr=False)
    centre: tuple[float, float] = field(default=(0.0, 0.0), compare=False)
    step: float = field(default=0.0, compare=False)
    shape: Gaussians = field(default=((1.0, 1.0),), compare=False)

    @property
    def notes(self) -> tuple[str, ...]:  # numpydoc ignore=RT01
        """All that there is to say."""
        return (*self.how, *([self.note] if self.note else []))

    def arcsec(self, pixel_scale: float) -> float:
        """Return its standard deviation in arcsec.

        Parameters
        ----------
        pixel_scale : float
            Of the image, arcsec per pixel.

        Returns
        -------
        float
            Arcsec.
        """
        return self.sigma * pixel_scale if self.in_pixels else self.sigma

    def residual(self, light: Array, variance: Array, pixel_scale: float, grid_scale: float) -> float:
        """Return the largest residual that its Gaussians leave where the PSF is its image.

        The brightness is free, as in the fit.

        Parameters
        ----------
        light : ndarray
            (N, N), what the PSF blurs, on pixels of `grid_scale` arcsec; the image itself will do for it.
        variance : ndarray
            (N, N), of the pixels.
        pixel_scale : float
            Arcsec per pixel of the image as it came.
        grid_scale : float
            Arcsec per pixel of the grid.

        Returns
        -------
        float
            In sigma of a pixel; 0 for a PSF given as a number.
        """
        from scipy.signal import fftconvolve

        if self.image is None or self.model is None:
            return 0.0
        factor = grid_scale / (self.step * (pixel_scale if self.in_pixels else 1.0))
        true, model = (
            fftconvolve(light, self._binned(kernel, factor, 2 * len(light) - 1), "same")
            for kernel in (self.image, self.model)
        )
        brightness = (true * model / variance).sum() / max((model**2 / variance).sum(), 1e-12)
        return float((np.abs(true - brightness * model) / np.sqrt(variance)).max())

    def _binned(self, kernel: Array, factor: float, widest: int) -> Array:
        """Return a kernel on pixels `factor` times as wide, an odd number of them, its centre on the middle one's."""
        for axis, offset in enumerate(self.centre[::-1]):
            side = kernel.shape[axis]
            n = min(2 * math.ceil(side / factor / 2) + 1, widest)
            edges = (np.arange(n + 1) - n / 2) * factor + (side - 1) / 2 + offset + 0.5
            total = np.concatenate([np.zeros((1, kernel.shape[1 - axis])), np.cumsum(np.moveaxis(kernel, axis, 0), 0)])
            at = np.array([np.interp(edges, np.arange(side + 1), column) for column in total.T])
            kernel = np.moveaxis(np.diff(at, axis=1).T, 0, axis)
        return kernel


def with_variance(sigma: float, shape: Gaussians, variance: float, least: float = 0.0) -> tuple[float, Gaussians]:
    """Blur a PSF by one more Gaussian, or take one away.

    Parameters
    ----------
    sigma : float
        Width of the PSF in arcsec.
    shape : Gaussians
        Its Gaussians in units of `sigma`.
    variance : float
        To be added to that of each Gaussian, in arcsec²; negative to take it away.
    least : float
        Width in arcsec below which none falls.

    Returns
    -------
    float
        The new width in arcsec.
    Gaussians
        The new Gaussians, in units of that.
    """

    def blurred(width: float) -> float:
        return float(max(width**2 + variance, least**2) ** 0.5)

    new = blurred(sigma)
    return new, tuple((share, blurred(ratio * sigma) / new) for share, ratio in shape)


def read_psf(given: Any) -> Psf:
    """Return the PSF that a user tells.

    Parameters
    ----------
    given : float, str, Path or ndarray
        Its sigma in arcsec, also as text; the image of a point source (h, w) on the pixels of the images; or the file of one,
        as FILE:EXT if it holds several. In a file of STPSF the PSF as the detector shows it is taken. Pixels are those of
        the file's header, else the images'.

    Returns
    -------
    Psf

    Raises
    ------
    D4LensError
        For what is none of these, and for an image that is no PSF.
    """
    if isinstance(given, os.PathLike):
        given = os.fspath(given)
    if isinstance(given, bytes):
        given = os.fsdecode(given)
    if isinstance(given, str):
        try:
            return Psf(float(given))
        except ValueError:
            return _measured(*_from_file(given))
    try:
        array = np.asarray(given)
    except Exception:  # a tensor of another device, a list of unequal rows, ...
        array = np.empty(0, object)
    if array.dtype.kind not in "fiu":
        raise D4LensError(
            f"the PSF is of type {type(given).__name__}; give its sigma in arcsec, an image of it (H, W) or a file"
        )
    return Psf(float(array)) if array.ndim == 0 else _measured(Raw(array), "the PSF", ())


def _from_file(path: str) -> tuple[Raw, str, tuple[str, ...]]:
    """Return the image in FILE or FILE:EXT, its name, and what was chosen."""
    try:
        file, band = file_and_band(path, "PSF")
    except D4LensError:
        raise D4LensError(f"the PSF {path} is neither a number of arcsec nor a file; check the path") from None
    try:
        raw = read_raw(file, _CALCULATED if band is None else band)
    except D4LensError as error:
        said = str(error).replace("--band NAME or number from 0", f"--psf {file}:NAME or its number")
        raise D4LensError(said) from None
    return raw, path, (f"PSF of {Path(file).name}:{raw.band}",) if raw.band else ()


def _measured(raw: Raw, where: str, how: tuple[str, ...]) -> Psf:
    header = raw.header
    if header.unread:
        raise D4LensError(
            f"the PSF {where}: {header.unread.replace('; give --pixel-scale ARCSEC', '; mend its header')}"
        )
    image = raw.pixels
    while image.ndim > 2 and len(image) == 1:
        image = image[0]
    sigma, centre, light, model, misfit, widths = _fit(image, where)
    note = ""
    if misfit > _MISFIT:
        note = f"the PSF in {where} is not round: {misfit:.0%} of its light lies elsewhere than in the round one fitted to it"
    if len(widths) > 1:
        how += (
            "PSF of "
            + ", ".join(f"{share:.0%} within a Gaussian of {width:.2f}" for share, width in widths)
            + " pixels",
        )
    offset = tuple(at - (side - 1) / 2 for at, side in zip(centre, image.shape[::-1], strict=True))
    if math.hypot(*offset) > 0.2:
        how += (f"PSF recentred from ({offset[0]:.2f}, {offset[1]:.2f}) pixels off its image's middle",)
    elif any(side % 2 == 0 for side in image.shape):
        how += (f"PSF image of {image.shape[1]} x {image.shape[0]} pixels, of even size, recentred on its light",)
    finer = header.oversampling
    if finer > 1:
        # What is calculated on finer pixels has not yet been through the detector's.
        sigma, *broader = (math.sqrt(width**2 + (finer**2 - 1) / 12) for width in (sigma, *(w for _, w in widths)))
        widths = tuple((share, width) for (share, _), width in zip(widths, broader, strict=True))
        how += (f"PSF calculated on pixels {finer:g} times as fine: the detector's pixel added",)
    step = header.pixel_scale or 1 / finer
    if not header.pixel_scale:
        how += ("PSF taken to be on the image's pixels" + (f", {finer:g} times as fine" if finer > 1 else ""),)
    else:
        how += (f"PSF pixels of {step:.4g} arcsec by its header{header.said('pixel scale')}",)
    disputed = header.disputed("pixel scale")
    shape = tuple((share, width / sigma) for share, width in widths)
    given = not header.pixel_scale, note, how, disputed, light, model
    return Psf(sigma * step, *given, (offset[0], offset[1]), step, shape)


def _fit(image: Array, where: str) -> tuple[float, tuple[float, float], Array, Array, float, Gaussians]:
    """Fit a Gaussian to a PSF, and several where one is not enough.

    Returns the single one's sigma and the centre (x, y) in pixels; image and model (H, W), the light of each 1; the share of
    light in other places; and the Gaussians: share of the light and sigma in pixels.
    """
    from scipy.optimize import least_squares

    if image.ndim != 2 or min(image.shape) < 5 or not np.isfinite(image).all():
        raise D4LensError(f"{where} is no PSF: it must be a finite image of at least 5 x 5 pixels, not {_what(image)}")
    rim = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]]).astype(float)
    image = image.astype(float) - np.median(rim)
    peak = image.max()
    if peak <= 0:
        raise D4LensError(f"{where} is no PSF: nothing in it stands above its rim")
    noise = 1.4826 * float(np.median(np.abs(rim - np.median(rim))))
    if -image.min() > _NEGATIVE * peak + 6 * noise or image.sum() <= 0:
        raise D4LensError(
            f"{where} is no PSF: it is negative, down to {image.min() / peak:.2g} of its peak; subtract no more than its sky"
        )
    y, x = np.indices(image.shape, float)
    row, column = np.unravel_index(int(image.argmax()), image.shape)
    half = max(float((image > peak / 2).sum()) / math.pi, 0.5) ** 0.5  # radius at half of the peak
    reach = int(max(16 * half, 32))  # far wings weigh nothing in the fit, but cost time
    near = np.s_[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]

    def model(p: Array, near: Any = np.s_[:]) -> Array:
        light: Array = p[3] * np.exp(-0.5 * ((x[near] - p[0]) ** 2 + (y[near] - p[1]) ** 2) / p[2] ** 2)
        return light

    start = [float(column), float(row), half / 1.1774, 1.0, 0.0]
    widest = float(max(image.shape))
    found = least_squares(
        lambda p: (model(p, near) + p[4] - image[near] / peak).ravel(),
        start,
        bounds=([-1, -1, 0.2, 0.1, -0.5], [widest, widest, widest, 10, 0.5]),
    ).x
    centre = float(found[0]), float(found[1])
    sigma, light, made = float(found[2]), _denoised(image, centre, noise), model(found)
    if light.sum() <= 0:
        raise D4LensError(f"{where} is no PSF: no point source stands out of its noise")
    light /= light.sum()
    made /= made.sum()
    widths: Gaussians = ((1.0, sigma),)
    if _elsewhere(light, made) > _ONE:
        made, widths = _several(light, (x - centre[0]) ** 2 + (y - centre[1]) ** 2, sigma)
    return sigma, centre, light, made, _elsewhere(light, made), widths


def _elsewhere(light: Array, model: Array) -> float:
    # Light that lacks in one place is too much in another.
    return float(np.abs(light - model).sum()) / 2


def _several(light: Array, squared: Array, sigma: float) -> tuple[Array, Gaussians]:
    """Fit Gaussians (Cappellari 2002) to light (H, W) at these squared distances from its centre; the model and the Gaussians."""
    from scipy.optimize import nnls

    widths = sigma * np.geomspace(_NARROWEST, _WIDEST, _WIDTHS)
    widths = np.maximum(widths, 0.4)[
        np.maximum(widths, 0.4) < max(light.shape) / 2
    ]  # narrower ones fall between the pixels
    columns = np.exp(-0.5 * squared.ravel() / widths[:, None] ** 2) / (2 * math.pi * widths[:, None] ** 2)
    ring = np.sqrt(squared).astype(int).ravel()
    mean = (np.bincount(ring, light.ravel()) / np.maximum(np.bincount(ring), 1))[ring]
    root = np.maximum(mean, _FAINT * mean.max()) ** -0.5
    shares = nnls((columns * root).T, light.ravel() * root)[0]
    kept = shares > _LEAST * shares.sum()
    shares, widths, columns = shares[kept] / shares[kept].sum(), widths[kept], columns[kept]
    model: Array = (shares @ columns).reshape(light.shape)
    return model / model.sum(), tuple(zip(shares.tolist(), widths.tolist(), strict=True))


def _denoised(image: Array, centre: tuple[float, float], noise: float) -> Array:
    """Return the image (H, W), nothing left of it beyond the first ring that does not stand out of the noise.

    The wings are kept, but a thousand pixels of noise or a level slightly off would outweigh them.
    """
    y, x = np.indices(image.shape, float)
    ring = np.hypot(x - centre[0], y - centre[1]).astype(int)
    number = np.maximum(np.bincount(ring.ravel()), 1)
    outer = ring > 0.8 * ring.max()
    seen = np.bincount(ring.ravel(), image.ravel()) / number - image[outer].mean() * (noise > 0)
    faint = np.flatnonzero(seen <= 3 * noise / np.sqrt(number))
    faint = faint[faint >= 3]
    light = np.where(ring < (faint[0] if len(faint) else ring.max() + 1), image, 0.0)
    level = image[ring >= faint[0]].mean() if len(faint) and noise > 0 else 0.0
    return np.where(light != 0, light - level, 0.0)


def _what(image: Array) -> str:
    bad = int((~np.isfinite(image)).sum())
    return f"one with {bad} pixels that are NaN or infinite" if bad else f"one of shape {image.shape}"
