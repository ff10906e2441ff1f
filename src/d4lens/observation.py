"""What the telescope does to a lens: grid, pixel scale, PSF and sky."""

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from d4lens.errors import PhysicsError

Image = TypeVar("Image")


@dataclass(frozen=True)
class Observation:
    """A square image's geometry and noise.

    Attributes
    ----------
    n_pixels : int
        Pixels a side, at least 8.
    pixel_scale : float
        arcsec a pixel, above 0.
    psf_sigma : float
        Standard deviation of the Gaussian PSF in arcsec, above 0.
    sky : float
        Mean sky counts a pixel, at least 0.

    Raises
    ------
    PhysicsError
        If a value is out of range; the message names it.
    """

    n_pixels: int
    pixel_scale: float
    psf_sigma: float
    sky: float

    def __post_init__(self) -> None:
        if self.n_pixels < 8:
            raise PhysicsError(f"n_pixels must be at least 8, not {self.n_pixels}")
        for name in ("pixel_scale", "psf_sigma"):
            if not getattr(self, name) > 0:
                raise PhysicsError(f"{name} must be above 0 arcsec, not {getattr(self, name)}")
        if not self.sky >= 0:
            raise PhysicsError(f"sky must be at least 0 counts per pixel, not {self.sky}")

    @property
    def half_width(self) -> float:  # numpydoc ignore=RT01
        """Half the image's side, in arcsec."""
        return self.n_pixels * self.pixel_scale / 2

    def binned(self, factor: int) -> "Observation":
        """Describe the image after summing blocks of pixels.

        Parameters
        ----------
        factor : int
            Pixels a side of a block; a remainder at the far edges is cropped.

        Returns
        -------
        Observation
            Of `n_pixels // factor` pixels; the PSF keeps its width in arcsec.
        """
        return Observation(self.n_pixels // factor, self.pixel_scale * factor, self.psf_sigma, self.sky * factor**2)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as JSON takes them.

        Returns
        -------
        dict
            The arguments of `from_dict`.
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Observation":
        """Invert `to_dict`.

        Parameters
        ----------
        values : dict
            The fields; lengths in arcsec, sky in counts per pixel.

        Returns
        -------
        Observation

        Raises
        ------
        TypeError
            For unknown or missing fields.
        PhysicsError
            For values out of range.
        """
        return cls(**values)


def bin_pixels(images: Image, factor: int) -> Image:
    """Sum blocks of `factor` x `factor` pixels.

    Parameters
    ----------
    images : ndarray or Tensor, (..., H, W)
        A remainder at the far edges is cropped.
    factor : int
        1 or more.

    Returns
    -------
    ndarray or Tensor, (..., H // factor, W // factor)
        In the precision of `images`; integers and booleans as 64-bit integers.
    """
    pixels: Any = images
    rows, columns = (side // factor for side in pixels.shape[-2:])
    inner = pixels[..., : rows * factor, : columns * factor]
    binned: Image = inner.reshape(*pixels.shape[:-2], rows, factor, columns, factor).sum((-3, -1))
    return binned
