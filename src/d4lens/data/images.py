"""One image: read from a file or a zip's member, held to a square of finite numbers, its photon counts recovered.

The published pixels are photon counts in disguise: x = (k - k_min)/(k_max - k_min) with integer k, so that the smallest
step between distinct values is 1/(k_max - k_min) and every count comes back exactly but for k_min, which the sky's known
mean gives (fitted to genuine images of the set of arXiv:1909.07346).
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4lens.data.archive import DEFAULT_LIMITS, MAX_IMAGE_BYTES, Limits, SafeZip, is_junk, natural_key
from d4lens.errors import D4LensError

Array = NDArray[Any]
MIN_SIDE = 8
MIN_LEVELS = 8
MAX_COUNT = np.iinfo(np.uint16).max
COUNTS, NORMALISED = "counts", "normalised"


@dataclass(frozen=True)
class Counts:
    """What an image's values say of photons.

    Attributes
    ----------
    is_counts: whether the values lie on a lattice of counts; where not, the rest is empty or zero.
    k: (H, W) int32 photon counts, sky included.
    n_levels: k_max - k_min, the number of steps from the faintest to the brightest pixel.
    k_min: the faintest pixel's count.
    sky_variance: variance of the counts in the median corner, which for photons is the sky's mean whatever k_min is.
    """

    is_counts: bool
    k: NDArray[np.int32]
    n_levels: int = 0
    k_min: int = 0
    sky_variance: float = 0.0


@dataclass(frozen=True)
class Observed:
    """An image as the networks and the fit take it.

    `pixels` is (n, n): uint16 photon counts if `units` is "counts", float32 from 0 to 1 if "normalised". `counts` is
    the native image's lattice, before binning.
    """

    pixels: Array
    units: str
    counts: Counts


@dataclass(frozen=True)
class ImageSource:
    """An image found but not yet read: a name to show, and `load()` -> (H, W) array; it raises D4LensError if the file
    cannot be used."""

    name: str
    load: Callable[[], Array]


def parse_npy(data: bytes, where: str) -> Array:
    """The array in the bytes of an .npy file, in native byte order and C order.

    Never unpickles, and believes the header only as far as the bytes bear it out. Raises D4LensError, naming `where`, for
    anything but real or integer numbers and for a declared shape that does not fit the bytes.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"format version {version[0]}.{version[1]}")
    except Exception:  # numpy's header parser lets through whatever a malformed literal raises
        what = "is empty" if not data else "is not an .npy array, or its header is damaged"
        raise D4LensError(f"{where} {what}; save the image again with numpy.save") from None
    if dtype.hasobject:
        raise D4LensError(f"{where} holds pickled Python objects, which are never loaded; save plain numbers")
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise D4LensError(f"{where} holds values of type {dtype}; an image needs float or integer pixels")
    found, size = len(data) - stream.tell(), prod(shape) * dtype.itemsize
    if any(side < 0 for side in shape) or found != size:
        raise D4LensError(f"{where} declares shape {shape} of {dtype}, {size} bytes, but holds {found}; save it again")
    try:
        array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError, OverflowError):  # forty sides of one pixel, no pixels of a side beyond 64 bits, True
        raise D4LensError(
            f"{where} declares a shape of {len(shape)} sides that no array can have; save it again"
        ) from None
    return np.ascontiguousarray(array, dtype.newbyteorder("="))


def as_image(array: Array, where: str) -> Array:
    """The (N, N) image in an array of shape (N, N) or (1, N, N).

    Raises D4LensError, naming `where`, if it is not square, smaller than 8 pixels, not finite or constant.
    """
    image = array[0] if array.ndim == 3 and len(array) == 1 else array
    if image.ndim != 2 or image.shape[0] != image.shape[1] or len(image) < MIN_SIDE:
        raise D4LensError(
            f"{where} has shape {array.shape}; one square image is (N, N) or (1, N, N) with N of {MIN_SIDE} or more"
        )
    low, high = image.min(), image.max()  # NaN comes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = np.argwhere(~np.isfinite(image))
        row, column = bad[0]
        raise D4LensError(
            f"{where} holds {len(bad)} pixels that are NaN or infinite, the first in row {row}, column {column}"
        )
    if low == high:
        raise D4LensError(f"{where} is constant: every pixel is {low:g}; it holds no image")
    return image


READERS: dict[str, Callable[[bytes, str], Array]] = {".npy": parse_npy}
"""File formats by suffix: bytes and a name for messages -> array."""


def read(path: str | Path) -> Array:
    """The image in one file, as `as_image` gives it. Raises D4LensError naming the file if it is missing or unusable."""
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise D4LensError(f"{path} is of no readable format; images are {', '.join(READERS)} files")
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise D4LensError(f"{path} is larger than {MAX_IMAGE_BYTES / 1e6:.0f} MB, too large for one image")
        data = path.read_bytes()
    except OSError as error:
        raise D4LensError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    return as_image(reader(data, str(path)), str(path))


def find(paths: Iterable[str | Path], limits: Limits = DEFAULT_LIMITS) -> Iterator[ImageSource]:
    """The images under files, folders (recursively) and zips (in place), lazily, each in natural order.

    Folders inside may have any structure; files of other formats in folders and zips are passed over. Raises D4LensError
    for a path that is missing, of no readable format, or holds no image; what is wrong inside an image shows at `load`.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise D4LensError(f"no file or folder {path}; check the path")
        if path.is_dir():
            yield from _some(_in_folder(path), path)
        elif path.suffix.lower() == ".zip":
            yield from _some(_in_zip(path, limits), path)
        elif path.suffix.lower() in READERS:
            yield ImageSource(str(path), lambda path=path: read(path))  # type: ignore[misc]
        else:
            raise D4LensError(f"{path} is of no readable format; give {', '.join(READERS)} files, folders or zips")


def _some(sources: Iterator[ImageSource], path: Path) -> Iterator[ImageSource]:
    empty = True
    for source in sources:
        empty = False
        yield source
    if empty:
        raise D4LensError(f"{path} holds no image; readable formats are {', '.join(READERS)}")


def _in_folder(folder: Path) -> Iterator[ImageSource]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in READERS)
    for path in sorted(files, key=lambda path: natural_key(path.relative_to(folder).as_posix())):
        if not is_junk(path.relative_to(folder).as_posix()):
            yield ImageSource(str(path), lambda path=path: read(path))  # type: ignore[misc]


def _in_zip(path: Path, limits: Limits) -> Iterator[ImageSource]:
    archive = SafeZip(path, limits)  # stays open as long as a source that may load from it lives
    for member in sorted(archive.members, key=natural_key):
        reader = READERS.get(Path(member).suffix.lower())
        if reader is not None:
            where = f"{path}: {member}"

            def load(member: str = member, reader: Any = reader, where: str = where) -> Array:
                return as_image(reader(archive.read(member), where), where)

            yield ImageSource(where, load)


def recover_counts(image: Array, sky: float) -> Counts:
    """The photon counts behind an image's values.

    Parameters
    ----------
    image: (H, W), finite and not constant; any linear rescaling of counts. float64 recovers any number of levels up to
        65535; float32, whose rounding blurs the lattice, is held to a tolerance that grows with the levels.
        Values that are whole numbers already and reach above 1 are taken for the counts themselves.
    sky: mean sky counts per pixel.

    Returns Counts; `is_counts` is False where the values are on no lattice of 8 to 65535 levels.
    Raises D4LensError if the image is constant or not finite.

    k_min = rint(sky - c), c the median over the four corners of the corner's mean count above the minimum. On 4000
    simulated lenses of the published set with corners of 15 or 20 of 150 pixels it was never wrong; of 10, where the
    mean scatters, it was for 0.5 %, and of 25, which meet the lens's wings, for 0.2 %.
    """
    low, high = image.min(), image.max()
    if not np.isfinite(high - low) or low == high:
        raise D4LensError("an image that is constant or not finite holds no counts")
    whole = image.dtype.kind in "iu" or bool(high > 1 and (image == np.rint(image)).all())
    if whole:
        if low < 0 or high > MAX_COUNT:
            return _no_counts()
        k = image.astype(np.int32)
        n_levels, k_min = int(high - low), int(low)
        variance = float(np.median([corner.var() for corner in _corners(k)]))
        return Counts(True, k, n_levels, k_min, variance) if n_levels >= MIN_LEVELS else _no_counts()
    values = image.astype(np.float64)
    if low != 0 or high != 1:
        values = (values - float(low)) / (float(high) - float(low))
    epsilon = float(np.finfo(image.dtype).eps)
    lattice = _lattice(values, epsilon * max(1.0, abs(float(low)) / float(high - low)))
    if lattice is None:
        return _no_counts()
    rank, n_levels = lattice
    corners = _corners(rank)
    k_min = max(0, round(sky - float(np.median([corner.mean() for corner in corners]))))
    return Counts(True, rank + np.int32(k_min), n_levels, k_min, float(np.median([c.var() for c in corners])))


def _lattice(values: NDArray[np.float64], epsilon: float) -> tuple[NDArray[np.int32], int] | None:
    """Whole-numbered ranks and the number of levels of values in [0, 1] that carry a relative rounding error epsilon."""
    few = values.flat[:: max(1, values.size // 512)]  # where a guess fails, it fails here already
    steps = np.diff(np.sort(values, axis=None))
    step = steps[steps > 16 * epsilon].min(initial=1.0)
    # Neighbours one count apart may be missing in a small image: the step found is then a few lattice steps.
    for multiple in range(1, 5):
        guess = multiple / step
        blur = 2 * epsilon * guess**2 / multiple
        for n in range(max(MIN_LEVELS, round(guess - blur)), min(MAX_COUNT, round(guess + blur)) + 1):
            # Below a tenth of a step random values would pass; above 4 n epsilon a true lattice never strays.
            tolerance = min(max(1e-9, 4 * n * epsilon), 0.1)
            if _strays(few * n) > tolerance:
                continue
            scaled = values * n
            if _strays(scaled) <= tolerance:
                return np.rint(scaled).astype(np.int32), n
    return None


def _strays(scaled: NDArray[np.float64]) -> float:
    """How far the value farthest from a whole number is from it."""
    return float(np.abs(scaled - np.rint(scaled)).max())


def corner_side(n_pixels: int) -> int:
    """Side in pixels of the corners that hold sky alone: see `recover_counts`."""
    return max(2, n_pixels // 8)


def _corners(image: Array) -> list[Array]:
    side = corner_side(len(image))
    return [
        image[rows, columns]
        for rows in (slice(side), slice(-side, None))
        for columns in (slice(side), slice(-side, None))
    ]


def _no_counts() -> Counts:
    return Counts(False, np.zeros((0, 0), np.int32))


def bin_pixels(image: Array, factor: int) -> Array:
    """Sum blocks of `factor` x `factor` pixels: (N, N) -> (N // factor, N // factor); a remainder at the far edges is
    cropped. Integers stay exact (int64)."""
    if factor == 1:
        return image
    n = len(image) // factor
    if n < MIN_SIDE:
        raise D4LensError(f"bin = {factor} leaves {n} of {len(image)} pixels a side; at least {MIN_SIDE} are needed")
    blocks = image[: n * factor, : n * factor].reshape(n, factor, n, factor)
    return blocks.sum((1, 3), dtype=np.int64 if image.dtype.kind in "iu" else np.float64)


def observe(image: Array, sky: float, factor: int = 1, units: str | None = None) -> Observed:
    """What every user of an image works on: its counts (or, where there are none, its values scaled to [0, 1]), binned.

    Parameters
    ----------
    image: (N, N) as `as_image` gives it.
    sky: mean sky counts per native pixel; 0 says that none is known.
    factor: side of the blocks of pixels that are summed.
    units: "counts" or "normalised" to demand one of them; None takes counts where the image has them and its sky is
        known. DeepLenseSim's Model I, for one, ends on whole numbers that are no Poisson counts over a sky.

    Raises D4LensError if counts are demanded and the image has none, or if they exceed 16 bits.
    """
    if units is None and sky == 0:
        units = NORMALISED
    counts = recover_counts(image, sky) if units != NORMALISED else _no_counts()
    if counts.is_counts:
        pixels = bin_pixels(counts.k, factor)
        if pixels.max() > MAX_COUNT:
            raise D4LensError(f"counts up to {pixels.max()} exceed {MAX_COUNT}, the most that 16 bits hold; bin less")
        return Observed(pixels.astype(np.uint16), COUNTS, counts)
    if units == COUNTS:
        raise D4LensError("the values lie on no lattice of photon counts; they were resampled, filtered or rounded")
    pixels = bin_pixels(image.astype(np.float64), factor)
    low, high = pixels.min(), pixels.max()
    if low == high:
        raise D4LensError(f"the image is constant once binned by {factor}")
    return Observed(((pixels - low) / (high - low)).astype(np.float32), NORMALISED, counts)
