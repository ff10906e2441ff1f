"""What a user knows of images and the file does not say: pixel scale, PSF, gain, exposure, sky, band, noise and others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d4lens.data.images.formats import Array
from d4lens.data.images.masks import Mask
from d4lens.data.images.psf import Psf, read_psf
from d4lens.data.images.sources import ImageSource, masked, noisy, read_masks, read_noise
from d4lens.errors import D4LensError


@dataclass(frozen=True)
class Instrument:
    """What is known of all images of one call; None leaves it to the file's header, and else to the preset.

    Attributes
    ----------
    pixel_scale: arcsec per pixel.
    psf: the PSF as the image's pixels show it.
    gain: photons (electrons) per unit of the image's values.
    exposure: seconds by which the values, a rate, are multiplied.
    sky: mean sky photons per pixel of the image, whether or not the values still hold it.
    band: name or number of the band in files that hold several.
    mask: where the images' pixels hold no data, (H, W) each: one for all images of a call, or one for each.
    noise: standard deviation of each pixel in the images' units, (H, W) each, infinite without data; as `mask`.
    einstein_radius: arcsec, about right, of lenses whose galaxy shines itself.

    Raises D4LensError naming the one that is not above 0.
    """

    pixel_scale: float | None = None
    psf: Psf | None = None
    gain: float | None = None
    exposure: float | None = None
    sky: float | None = None
    band: str | None = None
    mask: tuple[Mask, ...] | None = None
    noise: tuple[Array, ...] | None = None
    einstein_radius: float | None = None

    def __post_init__(self) -> None:
        psf = self.psf.sigma if self.psf is not None else None
        for name, value in (
            ("pixel scale", self.pixel_scale),
            ("PSF's sigma", psf),
            ("gain", self.gain),
            ("exposure", self.exposure),
            ("sky", self.sky),
            ("Einstein radius", self.einstein_radius),
        ):
            if value is not None and not 0 < value < math.inf:
                raise D4LensError(f"the {name} must be above 0 and finite, not {value:g}")

    def joined(self, sources: Sequence[ImageSource]) -> list[ImageSource]:
        """Return images with the masks and noise maps that are given for them.

        Parameters
        ----------
        sources : sequence of ImageSource
            All images of the call. Reading one raises D4LensError where its mask or map has another shape.

        Returns
        -------
        list of ImageSource
            The images.

        Raises
        ------
        D4LensError
            For another number of masks or maps than one for all images, or one each.
        """
        return noisy(masked(sources, self.mask), self.noise)


def read_instrument(
    pixel_scale: float | None = None,
    psf: float | str | Path | Array | None = None,
    gain: float | None = None,
    exposure: float | None = None,
    sky: float | None = None,
    band: str | int | None = None,
    mask: Any = None,
    noise: Any = None,
    einstein_radius: float | None = None,
) -> Instrument:
    """Return an Instrument from what a user gives.

    Parameters
    ----------
    pixel_scale : float, optional
        Arcsec per pixel.
    psf : float, str, Path or ndarray, optional
        As `read_psf` takes it; a number is its standard deviation in arcsec.
    gain : float, optional
        Photons per count.
    exposure : float, optional
        Seconds.
    sky : float, optional
        Mean sky in photons per pixel.
    band : str or int, optional
        Name or number of the image in its file.
    mask : optional
        As `read_masks` takes it.
    noise : optional
        As `read_noise` takes it.
    einstein_radius : float, optional
        Arcsec, about right, of lenses whose galaxy shines itself.

    Returns
    -------
    Instrument

    Raises
    ------
    D4LensError
        For a value out of range, or an image that is no PSF.
    """
    width, masks = None if psf is None else read_psf(psf), None if mask is None else read_masks(mask)
    maps = None if noise is None else read_noise(noise)
    named = None if band is None else str(band)
    return Instrument(pixel_scale, width, gain, exposure, sky, named, masks, maps, einstein_radius)
