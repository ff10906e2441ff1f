"""File formats: bytes in, one band's pixels and what the header says of them out. Nothing in a file is trusted.

A file holds one or more named bands: an .npz its keys, a FITS file its image extensions (a cube's planes as NAME:0,
NAME:1, ...), a picture its channels R, G, B, an .npy of three axes the places along its shortest axis.
"""

import gzip
import io
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4lens.data.archive import MAX_IMAGE_BYTES
from d4lens.data.images.headers import Header, header_of
from d4lens.data.images.masks import declared, is_companion, without
from d4lens.errors import D4LensError

Array = NDArray[Any]
MAX_PIXELS = MAX_IMAGE_BYTES // 8


@dataclass(frozen=True)
class Raw:
    """One band as it stands in a file.

    `pixels` (H, W) are integer, or real of 32 bits or 64, in native byte order; `band` is its name if the file has several; `noise` (H, W)
    is their standard deviation in their own units, where it is known.
    """

    pixels: Array
    header: Header = field(default_factory=Header)
    band: str = ""
    noise: Array | None = None


Band = str | tuple[str, ...] | None
"""One of a file's images: by its name or number; of several names the first that there is; the only one."""
Reader = Callable[[bytes, str, Band], Raw]


def parse_npy(data: bytes, where: str, kinds: str = "fiu") -> Array:
    """Return the array in the bytes of an .npy file, in native byte order and C order.

    It never unpickles, and believes the header only as far as the bytes bear it out.

    Parameters
    ----------
    data : bytes
        The file.
    where : str
        Its name, for the message of an error.
    kinds : str
        numpy's letters for the kinds of values taken; by default real and integer numbers.

    Returns
    -------
    ndarray

    Raises
    ------
    D4LensError
        For any other values, and for a declared shape that does not fit the bytes.
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
    if dtype.kind not in kinds or dtype.itemsize > 8:
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


def choose_image(names: Sequence[str], band: Band, where: str) -> int:
    """Find the image that is meant among several of a file.

    Parameters
    ----------
    names : sequence of str
        Names of the file's images, and of what stands beside them.
    band : str, tuple of str or None
        A name in any case, or a number from 0; of a tuple the first name that there is. Without one, or where none of the
        tuple is there, the only image is taken, or the one called SCI; what stands beside an image is none.
    where : str
        The file, for the message of an error.

    Returns
    -------
    int
        Its place in `names`.

    Raises
    ------
    D4LensError
        Where that leaves none or several.
    """
    if isinstance(band, tuple):
        present = {name.casefold() for name in names}
        band = next((name for name in band if name.casefold() in present), None)
    if band is None:
        images = [i for i, name in enumerate(names) if not is_companion(name)] or list(range(len(names)))
        science = [i for i in images if names[i].casefold() == "sci"]
        for found in (images, science):
            if len(found) == 1:
                return found[0]
        held = _listed([names[i] for i in images])
        raise D4LensError(f"{where} holds {len(images)} images ({held}); choose one by --band NAME or number from 0")
    named = [i for i, name in enumerate(names) if name.casefold() == band.casefold()]
    if len(named) == 1:
        return named[0]
    if not named and band.isdecimal() and int(band) < len(names):
        return int(band)
    how = "several bands" if named else "no band"
    raise D4LensError(f"{where} has {how} {band!r}; it holds {_listed(names)}, numbered from 0")


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def read_npy(data: bytes, where: str, band: Band = None) -> Raw:
    """Return an .npy image.

    Parameters
    ----------
    data : bytes
        The file.
    where : str
        Its name, for messages.
    band : str or tuple of str, optional
        One of several bands, as `choose` takes it.

    Returns
    -------
    Raw
        The image: (H, W), or three axes of which the shortest counts the bands.
    """
    return _plane(parse_npy(data, where), where, band)


def read_npz(data: bytes, where: str, band: Band = None) -> Raw:
    """Return one array of an .npz file, of the others those alone read that say where it holds data.

    Parameters
    ----------
    data : bytes
        The file.
    where : str
        Its name, for messages.
    band : str or tuple of str, optional
        One of several arrays, as `choose` takes it.

    Returns
    -------
    Raw
        The image, NaN where an array beside it, such as `mask`, says that it holds no data (`masks.declared` has the rules).

    Raises
    ------
    D4LensError
        If the file is damaged, holds no image, or several and none is named.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if not info.is_dir()}
            if not members:
                raise D4LensError(f"{where} holds no array; save the image again with numpy.savez")
            names = list(members)
            # With one array of several planes, the band is the plane's.
            name = names[0] if len(names) == 1 and band not in names else names[choose_image(names, band, where)]
            companion = is_companion(name)

            def unpack(member: str, kinds: str = "fiu") -> Array:
                info = members[member]
                if info.file_size > MAX_IMAGE_BYTES:
                    raise D4LensError(
                        f"{where}: {member!r} unpacks to {info.file_size / 1e6:.0f} MB, too large for one image"
                    )
                with archive.open(info) as stream:
                    return parse_npy(stream.read(MAX_IMAGE_BYTES), f"{where}: {member!r}", kinds)

            array = unpack(name, "fiub" if companion else "fiu")
            for other in [] if companion else filter(is_companion, names):
                values = unpack(other, "fiub")
                if values.shape == array.shape:
                    array = without(array, declared(other.upper(), values, {}, {}))
    except D4LensError:
        raise
    except Exception:  # zipfile lets through whatever a malformed directory raises, IndexError and struct.error too
        raise D4LensError(f"{where} is not an .npz file, or is damaged; save it again with numpy.savez") from None
    if len(names) == 1:
        return _plane(array, where, None if band in (None, *names) else band)
    raw = _plane(array, f"{where}: {name!r}", None)
    return Raw(raw.pixels, raw.header, name)


def read_fits(data: bytes, where: str, band: Band = None) -> Raw:
    """Read one image of a FITS file, plain, gzipped or tile-compressed, and what `header_of` reads in its header.

    BSCALE and BZERO are applied.

    Parameters
    ----------
    data : bytes
        The file.
    where : str
        Its name, for the message of an error.
    band : str or tuple of str, optional
        The HDU's name or number, as `choose` takes it.

    Returns
    -------
    Raw
        Pixels without data, by BLANK or by an extension beside the image (`masks.declared` has the rules), are NaN.

    Raises
    ------
    D4LensError
        If the file is damaged, or holds no such image.
    """
    from astropy.io import fits

    if data[:2] == b"\x1f\x8b":
        data = _gunzip(data, where)
    if data[:6] != b"SIMPLE":
        what = "is empty" if not data else "is no FITS file"
        raise D4LensError(f"{where} {what}; write it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message=".*truncated.*")
            with fits.open(io.BytesIO(data), memmap=False, lazy_load_hdus=False) as hdus:
                planes = [(name, hdu, index) for hdu in hdus for name, index in _fits_planes(hdu, hdus)]
                if not planes:
                    raise D4LensError(f"{where} holds no image, only tables or headers; name a file that has one")
                name, hdu, index = planes[choose_image([plane[0] for plane in planes], band, where)]
                blank = _blank(hdu.header)  # astropy drops it where BZERO makes the values unsigned
                if prod(hdu.shape) > MAX_PIXELS:
                    raise D4LensError(f"{where}: {name} has shape {hdu.shape}, too large for one image; cut it out")
                values = np.asarray(hdu.data).reshape(-1, *hdu.shape[-2:])[index]
                # A copy in native order: FITS is big-endian, and what follows would be slow or refuse it.
                pixels = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
                header = header_of(hdu.header, hdus)
                if blank is not None and pixels.dtype.kind in "iu":
                    pixels = without(pixels, pixels == blank)
                pixels = _with_companions(pixels, hdu, index, hdus)
    except D4LensError:
        raise
    except Exception as error:  # astropy raises whatever a damaged card or block leads to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise D4LensError(f"{where} is truncated or damaged ({reason}); fetch it again") from None
    if pixels.dtype.kind not in "fiu":
        raise D4LensError(f"{where} holds values of type {pixels.dtype}; an image needs float or integer pixels")
    return Raw(pixels, header, name if len(planes) > 1 else "")


def read_picture(data: bytes, where: str, band: Band = None) -> Raw:
    """Read a greyscale PNG or TIFF of 8, 16 or 32 bits, one of its frames, or one channel of 8-bit colour.

    Parameters
    ----------
    data : bytes
        The file.
    where : str
        Its name, for the message of an error.
    band : str or tuple of str, optional
        The frame's or channel's name or number, as `choose` takes it.

    Returns
    -------
    Raw

    Raises
    ------
    D4LensError
        For a damaged file, palettes and other modes that are no intensities, 16-bit colour (which Pillow would cut to 8) and
        pixels that are transparent.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG", "TIFF")) as picture:
                if prod(picture.size) > MAX_PIXELS:
                    raise D4LensError(
                        f"{where} is {picture.size[0]} x {picture.size[1]} pixels, too large for one image; cut it out"
                    )
                return _picture_band(picture, data, where, band)
    except D4LensError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise D4LensError(
            f"{where} unpacks to more pixels than one image has; a decompression bomb is refused"
        ) from None
    except UnidentifiedImageError:
        what = "is empty" if not data else "is not a readable PNG or TIFF picture"
        raise D4LensError(f"{where} {what}; save it again, as 8- or 16-bit greyscale") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for damage
        raise D4LensError(f"{where} is truncated or damaged ({str(error)[:120]}); save it again") from None


READERS: dict[str, Reader] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".fits": read_fits,
    ".fit": read_fits,
    ".fts": read_fits,
    ".fits.gz": read_fits,
    ".fits.fz": read_fits,
    ".png": read_picture,
    ".tif": read_picture,
    ".tiff": read_picture,
}
"""File formats by the end of the name: bytes, a name for messages and a band (or None) -> Raw."""


def reader_of(name: str) -> Reader | None:
    """Return the reader for a file's name.

    Parameters
    ----------
    name : str
        The file's.

    Returns
    -------
    callable or None
        As READERS has it; None if the format is not read.
    """
    return next((reader for suffix, reader in READERS.items() if name.lower().endswith(suffix)), None)


def _plane(array: Array, where: str, band: Band) -> Raw:
    """One plane of an array: leading axes of length one do not count, nor does the band of an image that has one."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)  # photon counts overflow halves
    while array.ndim > 2 and len(array) == 1:
        array = array[0]
    if array.ndim == 2:
        choose_image(["0"], band, where)
        return Raw(array)
    if array.ndim != 3 or 0 in array.shape:
        raise D4LensError(f"{where} has shape {array.shape}; an image is (H, W), or (bands, H, W)")
    axis = int(np.argmin(array.shape))
    index = choose_image([str(i) for i in range(array.shape[axis])], band, where)
    return Raw(np.ascontiguousarray(np.moveaxis(array, axis, 0)[index]), Header(), str(index))


def _gunzip(data: bytes, where: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            plain = stream.read(MAX_IMAGE_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise D4LensError(f"{where} is damaged gzip or cut short; fetch it again") from None
    if len(plain) > MAX_IMAGE_BYTES:
        raise D4LensError(f"{where} unpacks to more than {MAX_IMAGE_BYTES / 1e6:.0f} MB, too large for one image")
    return plain


def _fits_planes(hdu: Any, hdus: Any) -> list[tuple[str, int]]:
    """Names and flat indices of an HDU's image planes; leading axes are run through, the last two are the image's."""
    if not getattr(hdu, "is_image", False) or len(hdu.shape) < 2 or 0 in hdu.shape:
        return []
    name, n = hdu.name or f"HDU{hdus.index(hdu)}", prod(hdu.shape[:-2])
    return [(name, 0)] if n == 1 else [(f"{name}:{i}", i) for i in range(n)]


def _blank(header: Any) -> float | None:
    """Return the value of an integer image that stands for none."""
    blank = header.get("BLANK")
    return None if blank is None else blank * header.get("BSCALE", 1) + header.get("BZERO", 0)


def _with_companions(pixels: Array, image: Any, index: int, hdus: Any) -> Array:
    """Return the image's pixels, NaN where an extension of the same version says that they hold no data."""
    for hdu in hdus:
        if hdu is image or not is_companion(hdu.name) or is_companion(image.name):
            continue
        if not getattr(hdu, "is_image", False) or hdu.ver != image.ver or hdu.shape != image.shape:
            continue
        values = np.asarray(hdu.data).reshape(-1, *pixels.shape)[index]
        pixels = without(pixels, declared(hdu.name, values, hdu.header, hdus[0].header))
    return pixels


def _picture_band(picture: Any, data: bytes, where: str, band: Band) -> Raw:
    deep = data[24:25] == b"\x10" if picture.format == "PNG" else max(picture.tag_v2.get(258) or (8,)) > 8
    frames = getattr(picture, "n_frames", 1)
    if picture.mode in ("L", "F", "I") or picture.mode.startswith("I;16"):
        index = choose_image([str(i) for i in range(frames)], band, where)
        picture.seek(index)
        values = np.asarray(picture)
        return Raw(np.ascontiguousarray(values, values.dtype.newbyteorder("=")), band=str(index) if frames > 1 else "")
    if picture.mode not in ("LA", "RGB", "RGBA"):
        kind = "a palette, not intensities" if picture.mode in ("P", "PA") else f"pixels of mode {picture.mode}"
        raise D4LensError(f"{where} holds {kind}; save it as 8- or 16-bit greyscale")
    if deep:
        raise D4LensError(
            f"{where} is colour or transparent at 16 bits, which is not read; save one channel as greyscale"
        )
    channels = dict(zip(picture.getbands(), np.moveaxis(np.asarray(picture), 2, 0), strict=True))
    if "A" in channels and channels.pop("A").min() < 255:
        raise D4LensError(f"{where} has transparent pixels, whose values are unknown; save it without transparency")
    names, planes = list(channels), list(channels.values())
    if all(np.array_equal(planes[0], plane) for plane in planes[1:]) and not isinstance(band, str):
        return Raw(np.ascontiguousarray(planes[0]))  # grey saved as colour
    index = choose_image(names, band, where)
    return Raw(np.ascontiguousarray(planes[index]), band=names[index])
