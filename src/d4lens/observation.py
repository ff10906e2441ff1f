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
    n_pixels: pixels a side, at least 8.
    pixel_scale: arcsec per pixel, > 0.
    psf_sigma: standard deviation of the Gaussian PSF in arcsec, > 0.
    sky: mean sky counts per pixel, >= 0.

    Raises PhysicsError naming the value that is out of range.
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
    def half_width(self) -> float:
        """Half the image's side, in arcsec."""
        return self.n_pixels * self.pixel_scale / 2

    def binned(self, factor: int) -> "Observation":
        """Return the observation of images that `bin_pixels` has summed by `factor`."""
        return Observation(self.n_pixels // factor, self.pixel_scale * factor, self.psf_sigma, self.sky * factor**2)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Observation":
        """Return the inverse of `to_dict`.

        Raises TypeError for unknown or missing fields, PhysicsError for values out of range.
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
