"""Where images lie: files, folders, zips and patterns, listed first and read one by one."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from d4lens.data.archive import DEFAULT_LIMITS, MAX_IMAGE_BYTES, Limits, SafeZip, is_junk, natural_key
from d4lens.data.images.counts import as_image
from d4lens.data.images.formats import READERS, Array, Band, Raw, Reader, parse_npy, reader_of
from d4lens.data.images.masks import MASKS, Mask, without
from d4lens.errors import D4LensError, reason_of
from d4lens.files import readable

_MAGIC = frozenset("*?[")
_NO_WEIGHT = 1e5  # of the median noise: such pixels are masked, in files that have no infinity


@dataclass(frozen=True)
class ImageSource:
    """An image found but not yet read.

    `name` is to be shown. `read(band)` gives a Raw, a name or number choosing among a file's bands; it raises D4LensError if
    the file cannot be used. `place` is the file, and the member of it where that is a zip; empty for an array.
    """

    name: str
    read: Callable[[str | None], Raw]
    place: tuple[str, str] = ("", "")

    def load(self) -> Array:
        """Read the file's only image.

        Returns
        -------
        numpy.ndarray
            (N, N), held to what `as_image` demands.
        """
        return as_image(self.read(None).pixels, self.name)


def read_image(path: str | Path) -> Array:
    """Return the image in one file, as `as_image` gives it.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    numpy.ndarray
        (N, N).

    Raises
    ------
    D4LensError
        Naming the file, if it is missing or unusable.
    """
    return as_image(read_raw(path).pixels, str(path))


def read_raw(path: str | Path, band: Band = None) -> Raw:
    """Read one band of one file.

    Parameters
    ----------
    path : str or Path
        The file.
    band : str or tuple of str, optional
        One of several bands, as `choose` takes it.

    Returns
    -------
    Raw
        The band.

    Raises
    ------
    D4LensError
        Naming the file, if it is missing or unusable.
    """
    path = Path(path)
    reader = reader_of(path.name)
    if reader is None:
        raise D4LensError(f"{path} is of no readable format; images are {_formats()} files")
    return reader(_bytes(path), str(path), band)


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise D4LensError(f"{path} is larger than {MAX_IMAGE_BYTES / 1e6:.0f} MB, too large for one image")
        return path.read_bytes()
    except OSError as error:
        raise D4LensError(f"{path} cannot be read: {reason_of(error)}") from None


def find(paths: Iterable[str | Path], limits: Limits = DEFAULT_LIMITS) -> Iterator[ImageSource]:
    """Find the images under files, folders (recursively), zips (in place) and patterns (`**` reaches into folders).

    They come lazily, each path's in natural order; one that several paths lead to comes once. Folders inside may have any
    structure; files of other formats in folders, zips and patterns are passed over. What is wrong inside an image shows when
    it is read.

    Parameters
    ----------
    paths : iterable of str or Path
        Where to look.
    limits : Limits
        How large a zip may unpack.

    Yields
    ------
    ImageSource
        An image.

    Raises
    ------
    D4LensError
        For a path that is missing, of no readable format, or holds no image, and for a zip inside a zip.
    """
    seen: set[tuple[str, str]] = set()
    for path in paths:
        if not str(path):  # pathlib takes it for the folder one is in
            raise D4LensError("an empty text is no path; name a file, a folder or a pattern")
        for key, source in _under(Path(path), limits):
            if key not in seen:
                seen.add(key)
                yield source


_Found = tuple[tuple[str, str], ImageSource]


def _under(path: Path, limits: Limits) -> Iterator[_Found]:
    if not path.exists():
        if not _MAGIC & set(str(path)):
            raise D4LensError(f"no file or folder {path}; check the path")
        yield from _some(_matching(path, limits), path)
    elif path.is_dir():
        yield from _some(_in_folder(path), path)
    elif path.suffix.lower() == ".zip":
        yield from _some(_in_zip(path, limits), path)
    elif reader_of(path.name):
        yield _file(path)
    else:
        raise D4LensError(f"{path} is of no readable format; give {_formats()} files, folders or zips")


def _some(found: Iterator[_Found], path: Path) -> Iterator[_Found]:
    empty = True
    for item in found:
        empty = False
        yield item
    if empty:
        raise D4LensError(f"{path} holds no image; readable formats are {_formats()}")


def _matching(pattern: Path, limits: Limits) -> Iterator[_Found]:
    for match in sorted(glob.glob(str(pattern), recursive=True), key=natural_key):
        path = Path(match)
        if path.is_dir():
            yield from _in_folder(path)
        elif path.suffix.lower() == ".zip":
            yield from _in_zip(path, limits)
        elif reader_of(path.name) and not is_junk(path.name):
            yield _file(path)


def _in_folder(folder: Path) -> Iterator[_Found]:
    files = (path for path in folder.rglob("*") if reader_of(path.name) and path.is_file())
    for path in sorted(files, key=lambda path: natural_key(path.relative_to(folder).as_posix())):
        if not is_junk(path.relative_to(folder).as_posix()):
            yield _file(path)


def _file(path: Path) -> _Found:
    place = os.path.realpath(path), ""
    return place, ImageSource(readable(str(path)), lambda band: read_raw(path, band), place)


def _in_zip(path: Path, limits: Limits) -> Iterator[_Found]:
    archive = SafeZip(path, limits)  # stays open as long as a source that may load from it lives
    for member in sorted(archive.members, key=natural_key):
        if member.lower().endswith(".zip"):
            raise D4LensError(f"{path} holds the zip {member!r}, and zips in zips are not opened; unpack it first")
        reader = reader_of(member)
        if reader is not None:
            where = readable(f"{path}: {member}")

            def load(band: str | None, member: str = member, reader: Reader = reader, where: str = where) -> Raw:
                return reader(archive.read(member), where, band)

            place = os.path.realpath(path), member
            yield place, ImageSource(where, load, place)


def read_masks(given: Any) -> tuple[Mask, ...]:
    """Return the masks in what a user gives.

    Parameters
    ----------
    given : str, Path, numpy.ndarray or a list of them
        A file of any readable format, as FILE:NAME if it holds several arrays and none called a mask; an array (H, W), or
        several of them: a list, or a stack (B, H, W).

    Returns
    -------
    tuple of numpy.ndarray
        (H, W) bool each, True where there are no data.

    Raises
    ------
    D4LensError
        For anything else.
    """
    return _given(
        given, "a mask", "that is True or nonzero where there are no data", "biuf", _read_mask, lambda part: part != 0
    )


def _given(
    given: Any, what: str, array: str, kinds: str, read: Callable[[str], Array], of_array: Callable[[Array], Array]
) -> tuple[Array, ...]:
    """Return what stands beside the images: files read by `read`, arrays (H, W) of these kinds of dtype made by `of_array`.

    `what` and `array` are for the message.
    """
    if isinstance(given, (str, os.PathLike)):
        return (read(os.fspath(given)),)
    if isinstance(given, (list, tuple)) and given and all(isinstance(item, (str, os.PathLike)) for item in given):
        return tuple(read(os.fspath(item)) for item in given)
    try:
        parts = [np.asarray(given)] if np.ndim(given) == 2 else [np.asarray(item) for item in given]
    except (TypeError, ValueError):
        parts = []
    if not parts or any(part.ndim != 2 or part.dtype.kind not in kinds for part in parts):
        raise D4LensError(
            f"{what} is a file, an array (H, W) {array}, or a list of them, one an image; {type(given).__name__} was given"
        )
    return tuple(of_array(part) for part in parts)


def _read_mask(name: str) -> Mask:
    file, band = file_and_band(name, "mask")
    if file.lower().endswith(".npy"):
        values = parse_npy(_bytes(Path(file)), file, kinds="biuf")
        if values.ndim != 2:
            raise D4LensError(f"{file} has shape {values.shape}; a mask is (H, W)")
        return np.not_equal(values, 0)
    # In a file that holds an image too, the mask is what is called so.
    return np.not_equal(read_raw(file, MASKS if band is None else band).pixels, 0)


def read_noise(given: Any) -> tuple[Array, ...]:
    """Return the noise maps in what a user gives.

    Parameters
    ----------
    given : str, Path, numpy.ndarray or a list of them
        A file of any readable format, as FILE:EXT if it holds several images (of an .npz the key `noise` is taken); an array
        (H, W); or several of them: a list, or a stack (B, H, W).

    Returns
    -------
    tuple of numpy.ndarray
        (H, W) each: standard deviations in the image's units, infinite where there are no data. NaN counts as infinite, and
        so does what is so large that its pixel weighs nothing.

    Raises
    ------
    D4LensError
        For anything else, and for noise that is not above 0.
    """
    positive = partial(_positive, where="the noise map")
    return _given(given, "a noise map", "of standard deviations", "iuf", _read_noise, positive)


def _read_noise(path: str) -> Array:
    file, band = file_and_band(path, "noise map")
    if band is None and file.lower().endswith(".npz"):
        band = "noise"
    try:
        return _positive(read_raw(file, band).pixels, path)
    except D4LensError as error:
        said = str(error).replace("choose one by --band NAME or number from 0", f"name one: --noise {file}:NAME")
        raise D4LensError(said) from None


def _positive(noise: Array, where: str) -> Array:
    noise = noise.astype(np.float64)
    bad = np.argwhere(noise <= 0)
    if len(bad):
        row, column = bad[0]
        raise D4LensError(
            f"{where} holds {len(bad)} pixels of noise that is not above 0, the first in row {row}, column {column}; "
            "give infinity where there are no data"
        )
    seen = noise[np.isfinite(noise)]
    if not seen.size:
        raise D4LensError(
            f"{where} is nowhere finite, so that no pixel holds data; give the noise's standard deviation"
        )
    return np.where(noise < _NO_WEIGHT * np.median(seen), noise, np.inf)


def file_and_band(path: str, what: str) -> tuple[str, str | None]:
    """Split FILE or FILE:EXT, whatever colons FILE has itself.

    Parameters
    ----------
    path : str
        As a user gives it.
    what : str
        What it is, for the message.

    Returns
    -------
    file : str
        The file.
    band : str or None
        What stands after it.

    Raises
    ------
    D4LensError
        If there is no such file.
    """
    file, band = path, None
    while not os.path.isfile(file):
        file, colon, _ = file.rpartition(":")
        if not colon:
            raise D4LensError(f"the {what} {path} is no file; check the path")
        band = path[len(file) + 1 :]
    return file, band


def masked(sources: Sequence[ImageSource], masks: Sequence[Mask] | None) -> list[ImageSource]:
    """Return the sources with NaN where their masks say so.

    Parameters
    ----------
    sources : sequence of ImageSource
        The images. Reading one raises D4LensError where its mask has another shape.
    masks : sequence of numpy.ndarray, optional
        (H, W) bool: one for all images, or one each.

    Returns
    -------
    list of ImageSource
        The images.

    Raises
    ------
    D4LensError
        For another number of masks.
    """
    return _each(sources, masks, "mask", lambda raw, mask: replace(raw, pixels=without(raw.pixels, mask)))


def noisy(sources: Sequence[ImageSource], noise: Sequence[Array] | None) -> list[ImageSource]:
    """Return the sources with their noise maps, and NaN where the noise is infinite.

    Parameters
    ----------
    sources : sequence of ImageSource
        The images. Reading one raises D4LensError where its map has another shape.
    noise : sequence of numpy.ndarray, optional
        (H, W) standard deviations in the images' units: one for all images, or one each.

    Returns
    -------
    list of ImageSource
        The images.

    Raises
    ------
    D4LensError
        For another number of maps.
    """
    return _each(
        sources,
        noise,
        "noise map",
        lambda raw, sigma: replace(raw, noise=sigma, pixels=without(raw.pixels, ~np.isfinite(sigma))),
    )


def _each(
    sources: Sequence[ImageSource], given: Sequence[Array] | None, what: str, joined: Callable[[Raw, Array], Raw]
) -> list[ImageSource]:
    """Return the sources, each read together with what is given for it."""
    if not given:
        return list(sources)
    if len(given) not in (1, len(sources)):
        raise D4LensError(f"{len(given)} {what}s were given for {len(sources)} images; give one for all, or one each")

    def beside(source: ImageSource, other: Array) -> ImageSource:
        def read(band: str | None) -> Raw:
            raw = source.read(band)
            if raw.pixels.shape != other.shape:
                raise D4LensError(
                    f"{source.name} has {_size(raw.pixels)} pixels and its {what} {_size(other)}; give a {what} of its pixels"
                )
            return joined(raw, other)

        return replace(source, read=read)

    each = list(given) * len(sources) if len(given) == 1 else given
    return [beside(source, other) for source, other in zip(sources, each, strict=True)]


def _size(image: Array) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _formats() -> str:
    return ", ".join(READERS)
