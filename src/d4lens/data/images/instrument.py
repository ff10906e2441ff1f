"""What a user knows of an instrument and the file does not say: pixel scale, PSF, gain, exposure, sky, band."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d4lens.data.images.formats import Array
from d4lens.data.images.sources import read_raw
from d4lens.errors import D4LensError

_MISFIT = 0.1  # light of a PSF, as a share of all, in other places than the fitted Gaussian's: above, it is said


@dataclass(frozen=True)
class Psf:
    """A Gaussian PSF: `sigma` in arcsec, or in the image's pixels if `in_pixels`; `note` says what it is not."""

    sigma: float
    in_pixels: bool = False
    note: str = ""

    def arcsec(self, pixel_scale: float) -> float:
        """Its standard deviation in arcsec on pixels of `pixel_scale` arcsec."""
        return self.sigma * pixel_scale if self.in_pixels else self.sigma


@dataclass(frozen=True)
class Instrument:
    """What is told of all images of one call; None leaves it to the file's header, and else to the preset.

    Attributes
    ----------
    pixel_scale: arcsec per pixel.
    psf: the PSF as the image's pixels show it.
    gain: photons (electrons) per unit of the image's values.
    exposure: seconds by which the values, a rate, are multiplied.
    sky: mean sky photons per pixel of the image, whether or not the values still hold it.
    band: name or number of the band in files that hold several.

    Raises D4LensError naming the one that is not above 0.
    """

    pixel_scale: float | None = None
    psf: Psf | None = None
    gain: float | None = None
    exposure: float | None = None
    sky: float | None = None
    band: str | None = None

    def __post_init__(self) -> None:
        psf = self.psf.sigma if self.psf is not None else None
        for name, value in (
            ("pixel scale", self.pixel_scale),
            ("PSF's sigma", psf),
            ("gain", self.gain),
            ("exposure", self.exposure),
            ("sky", self.sky),
        ):
            if value is not None and not 0 < value < math.inf:
                raise D4LensError(f"the {name} must be above 0 and finite, not {value:g}")


def instrument(
    pixel_scale: float | None = None,
    psf: float | str | Path | None = None,
    gain: float | None = None,
    exposure: float | None = None,
    sky: float | None = None,
    band: str | int | None = None,
) -> Instrument:
    """An Instrument from what a user gives: `psf` a sigma in arcsec or the file of a PSF's image, `band` a name or number.

    Raises D4LensError for a value out of range or a file that holds no PSF.
    """
    width = None
    if psf is not None:
        try:
            width = Psf(float(str(psf)))
        except ValueError:
            width = read_psf(str(psf))
    return Instrument(pixel_scale, width, gain, exposure, sky, None if band is None else str(band))


def read_psf(path: str | Path) -> Psf:
    """The Gaussian width of the PSF in an image file: in arcsec by its header, else in pixels, taken to be the images'."""
    if not Path(path).exists():
        raise D4LensError(f"the PSF {path} is neither a number of arcsec nor a file; check the path")
    raw = read_raw(path)
    sigma, misfit = measure_psf(raw.pixels, str(path))
    note = ""
    if misfit > _MISFIT:
        note = (
            f"the PSF in {path} is no Gaussian: {misfit:.0%} of its light lies elsewhere than in the fitted one of "
            f"{sigma:.2f} pixels"
        )
    scale = raw.header.pixel_scale
    return Psf(sigma * scale, False, note) if scale else Psf(sigma, True, note)


def measure_psf(image: Array, where: str = "the PSF") -> tuple[float, float]:
    """Standard deviation in pixels of the round Gaussian fitted (least squares, sampled at pixel centres, with its centre
    and a flat background) to the image of a point source (H, W), and the share of light that it misplaces.

    Raises D4LensError, naming `where`, for an image in which no point source stands out.
    """
    from scipy.optimize import least_squares

    if image.ndim != 2 or min(image.shape) < 5 or not np.isfinite(image).all():
        raise D4LensError(f"{where} is no PSF: it must be a finite image of at least 5 x 5 pixels")
    rim = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]]).astype(float)
    image = image.astype(float) - np.median(rim)
    peak = image.max()
    if peak <= 0:
        raise D4LensError(f"{where} is no PSF: nothing in it stands above its rim")
    y, x = np.indices(image.shape, float)
    row, column = np.unravel_index(int(image.argmax()), image.shape)
    half = max(float((image > peak / 2).sum()) / math.pi, 0.5) ** 0.5  # radius at half of the peak

    def model(p: Array) -> Array:
        return p[3] * np.exp(-0.5 * ((x - p[0]) ** 2 + (y - p[1]) ** 2) / p[2] ** 2)

    start = [float(column), float(row), half / 1.1774, 1.0, 0.0]
    widest = float(max(image.shape))
    found = least_squares(
        lambda p: (model(p) + p[4] - image / peak).ravel(),
        start,
        bounds=([-1, -1, 0.2, 0.1, -0.5], [widest, widest, widest, 10, 0.5]),
    ).x
    light = image / peak - found[4]
    misfit = float(np.abs(light - model(found)).sum() / max(np.abs(light).sum(), 1e-12))
    return float(found[2]), misfit / 2  # light that lacks in one place is too much in another
