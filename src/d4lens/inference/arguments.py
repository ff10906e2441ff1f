"""What a caller from Python gives, made into what the package works on; what cannot be is refused in one sentence.

Converted is what has one plain meaning: astropy's HDUs, CCDData, Cutout2D and Quantities, pictures of Pillow, the bytes of a
file, tensors of any layout and precision, and whatever numpy makes an array of real numbers of. An object that comes with a
header is written as the file that it would be, so that objects and files are read by the same code.
"""

import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d4lens.data.images import Header, ImageSource, Raw, find
from d4lens.data.images.formats import Reader, read_fits, read_npy, read_npz, read_picture
from d4lens.errors import D4LensError

Array = NDArray[Any]

_TAKEN = "an image is an array of real numbers (N, N), a stack (B, N, N)"
_COLOURS = 4  # last axes up to so long are colours, not pixels
_LINE = 0.05  # departure from a line, as a share, up to which a variance is that of photons
_MAGIC: tuple[tuple[bytes, Reader], ...] = (
    (b"\x93NUMPY", read_npy),
    (b"PK", read_npz),
    (b"SIMPLE", read_fits),
    (b"\x1f\x8b", read_fits),
    (b"\x89PNG", read_picture),
    (b"II*\0", read_picture),
    (b"MM\0*", read_picture),
)
_UNITS = {
    "pixel_scale": ("arcsec", "arcsec / pix"),
    "psf": ("arcsec",),
    "gain": ("electron / adu", "photon / adu", "electron / ct", "photon / ct", "electron / DN", "photon / DN", ""),
    "exposure": ("s",),
    "einstein_radius": ("arcsec",),
    "sky": ("electron", "photon", "ct", "electron / pix", "photon / pix", "ct / pix", ""),
}
_IMAGE_UNITS = ("electron", "photon", "ct", "adu", "electron/s", "photon/s", "ct/s", "adu/s")


def image_sources(images: Any) -> list[ImageSource]:
    """Find the images in what a caller gives, ready to be read.

    Parameters
    ----------
    images : object
        Paths, arrays, tensors, HDUs, pictures, lists of these and others.

    Returns
    -------
    list of ImageSource
        Those under paths are called by them, the rest by their place.

    Raises
    ------
    D4LensError
        For what holds no image; it names the type and what to give instead.
    """
    found = _sources(images, None)
    if not found:
        raise D4LensError("there are no images to work on")
    return found


def instrument_values(known: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Convert what is known of the instrument to what `d4lens.data.images.read_instrument` takes.

    Parameters
    ----------
    known : mapping
        By name: numbers, Quantities, numbers as text.
    names : iterable of str
        The names there are.

    Returns
    -------
    dict
        Numbers in arcsec, seconds and photons where `known` has numbers of any form.

    Raises
    ------
    D4LensError
        For a name or a value that is none of these.
    """
    names = list(names)
    if unknown := [name for name in known if name not in names]:
        raise D4LensError(f"nothing is called {', '.join(unknown)}; what can be given is {', '.join(names)}")
    values = dict(known)
    for name in _UNITS.keys() & values.keys():
        value = values[name]
        if name != "psf" or _is(value, "astropy.units", "Quantity") or isinstance(value, (bool, complex)):
            values[name] = None if value is None else to_number(name, value)
    band = values.get("band")
    if band is not None:
        if isinstance(band, bool) or not isinstance(band, (str, int, np.integer)):
            raise D4LensError(f"band takes a name or a number from 0, not {_kind(band)}")
        values["band"] = str(band)
    return values


def names_of(free: Any) -> tuple[str, ...]:
    """List names that a user gives.

    Parameters
    ----------
    free : sequence of str, str or None
        The names, or text that commas divide.

    Returns
    -------
    tuple of str
        The names.

    Raises
    ------
    D4LensError
        For anything else.
    """
    if free is None:
        return ()
    given = free.split(",") if isinstance(free, str) else free
    try:
        names = list(given)
    except TypeError:
        names = [None]
    if not all(isinstance(name, str) for name in names):
        raise D4LensError(f"free takes names such as ('n', 'R_e') or 'n,R_e', not {_kind(free)}")
    return tuple(name.strip() for name in names if name.strip())


def switch(name: str, value: Any) -> bool:
    """Check that a value is True or False; "no" would pass for True.

    Parameters
    ----------
    name : str
        The argument, for the message.
    value : bool
        Its value.

    Returns
    -------
    bool
        The value.

    Raises
    ------
    D4LensError
        For anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise D4LensError(f"{name} takes True or False, not {value!r}")
    return bool(value)


def path_or_none(name: str, value: Any) -> str | None:
    """Return a path as text.

    Parameters
    ----------
    name : str
        The argument, for the message.
    value : str, Path or None
        Its value.

    Returns
    -------
    str or None
        The path.

    Raises
    ------
    D4LensError
        For anything else.
    """
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise D4LensError(f"{name} takes the path of a file, not {_kind(value)}")
    return None if value is None else os.fsdecode(value)


def _sources(images: Any, place: int | None) -> list[ImageSource]:
    """`place`: that of the one image in a list of several; None where a stack may be given."""
    if isinstance(images, (str, os.PathLike)):
        return list(find([os.fsdecode(images)]))
    if isinstance(images, Mapping):
        raise D4LensError(f"{_kind(images)} was given; give its images, such as list(images.values())")
    where = f"image {place or 0}"
    reader = _with_header(images, where)
    if reader is not None:
        return [ImageSource(str(place or 0), reader)]
    if isinstance(images, (list, tuple)) or _is_iterator(images):
        return _of_list(list(images), place)
    unit = _unit_of(images)
    array = _array(images, where)
    if array.dtype.kind == "U" or (array.dtype.kind == "O" and array.ndim == 1):
        return _of_list(array.ravel().tolist(), place)
    stack = _stack(_numbers(array, where), where if place is not None else "images")
    if place is not None and len(stack) != 1:
        raise D4LensError(f"{where} has shape {array.shape}; it must be (N, N) real numbers")
    return [ImageSource(str(i if place is None else place), _plain(image, unit)) for i, image in enumerate(stack)]


def _of_list(items: list[Any], place: int | None) -> list[ImageSource]:
    """Find the images in a list: paths, images, or the numbers of one image or stack."""
    if items and all(isinstance(item, (str, os.PathLike)) for item in items):
        return list(find(map(os.fsdecode, items)))
    leaf: Any = items
    while isinstance(leaf, (list, tuple)) and leaf:
        leaf = leaf[0]
    if items and isinstance(leaf, (int, float, complex, np.generic)):
        return _sources(_of_numbers(items, place), place)
    if items and all(isinstance(item, (np.ndarray, Tensor)) and item.ndim == 1 for item in items):
        rows = [_array(item, f"row {i}").tolist() for i, item in enumerate(items)]
        return _sources(_of_numbers(rows, place), place)
    if place is not None:
        raise D4LensError(f"image {place} is {_kind(items)}; give one flat list of images")
    return [source for i, item in enumerate(items) for source in _sources(item, i)]


def _of_numbers(rows: list[Any], place: int | None) -> Array:
    try:
        return np.array(rows)
    except (ValueError, TypeError, RuntimeError):
        where = "the list" if place is None else f"image {place}"
        raise D4LensError(f"{where} has rows of different lengths or kinds; {_TAKEN}") from None


def _with_header(item: Any, where: str) -> Callable[[str | None], Raw] | None:
    """How to read an object that is a file's content or knows more than its pixels; None for any other."""
    fits, nddata = "astropy.io.fits", "astropy.nddata"
    for module, name, hdus in (
        (fits, "HDUList", lambda: item),
        ("astropy.io.fits.hdu.base", "_BaseHDU", lambda: [item]),
        (nddata, "Cutout2D", lambda: [_cutout(item, where)]),
        (nddata, "NDData", lambda: [_ccd(item, where)]),
    ):
        if _is(item, module, name):
            return lambda band: read_fits(_fits_bytes(hdus, where), where, band)
    if _is(item, "PIL.Image", "Image"):
        return lambda band: read_picture(_picture_bytes(item, where), where, band)
    if isinstance(item, (bytes, bytearray)) or (isinstance(item, memoryview) and item.format == "B" and item.ndim == 1):
        return _of_bytes(bytes(item), where)
    if hasattr(item, "read") and hasattr(item, "seek"):
        try:
            content = item.read()
        except (OSError, ValueError) as error:  # closed, or opened for writing
            raise D4LensError(f"{where} is a file that cannot be read ({error}); give its path") from None
        if isinstance(content, str):
            raise D4LensError(f"{where} is a file opened as text; open it with mode 'rb', or give its path")
        return _of_bytes(content, where)
    return None


def _of_bytes(data: bytes, where: str) -> Callable[[str | None], Raw]:
    reader = next((reader for magic, reader in _MAGIC if data.startswith(magic)), None)
    if reader is None:
        raise D4LensError(
            f"{where} is {len(data)} bytes that are no .npy, .npz, FITS, PNG or TIFF file; give a file's bytes, an array or "
            "a path"
        )
    return lambda band: reader(data, where, band)


def _fits_bytes(hdus: Callable[[], Iterable[Any]], where: str) -> bytes:
    """HDUs as the FITS file that they make; tiles are not compressed again, which would round."""
    from astropy.io import fits

    stream, parts = io.BytesIO(), []
    try:
        for hdu in hdus():
            if not getattr(hdu, "is_image", False):
                continue
            data = (
                None if hdu.data is None else np.array(hdu.data)
            )  # astropy swaps the bytes of what it writes in place
            if isinstance(hdu, fits.PrimaryHDU):
                parts.append(fits.PrimaryHDU(data, hdu.header.copy()))
            else:
                parts.append(fits.ImageHDU(data, hdu.header.copy(), name=hdu.name or None))
        if not (parts and isinstance(parts[0], fits.PrimaryHDU)):
            parts.insert(0, fits.PrimaryHDU())
        fits.HDUList(parts).writeto(stream, output_verify="silentfix+ignore")
    except D4LensError:
        raise
    except Exception as error:  # a closed file, a header that is none: whatever astropy meets
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise D4LensError(f"{where} cannot be read ({reason}); give its file's path or its array") from None
    return stream.getvalue()


def _cutout(item: Any, where: str) -> Any:
    from astropy.io import fits

    return fits.ImageHDU(_numbers(np.asarray(item.data), where), item.wcs.to_header() if item.wcs is not None else None)


def _ccd(item: Any, where: str) -> Any:
    """Make an NDData an HDU with header, WCS and unit; what its mask covers is NaN.

    Where its uncertainty is that of photons, the values become photons with their sky. Any other is refused, since the
    fit knows photon noise alone.
    """
    from astropy import units
    from astropy.io import fits
    from astropy.nddata import StdDevUncertainty

    values, unit = _value_and_unit(item.data, item.unit)
    header = fits.Header(item.meta)
    if item.wcs is not None and hasattr(item.wcs, "to_header"):
        header.extend(item.wcs.to_header(relax=True), update=True)
    if item.uncertainty is not None:
        try:
            sigma = item.uncertainty.represent_as(StdDevUncertainty)
            scale = sigma.unit.to(item.unit) if isinstance(sigma.unit, units.UnitBase) and item.unit else 1.0
            sigma = sigma.array * scale
        except Exception:  # an UnknownUncertainty, or one of another unit
            sigma = None
        values, unit = _photons_by_uncertainty(np.asarray(item.data), sigma, item.mask, where), "electron"
    if unit:
        header["BUNIT"] = unit
    if item.mask is not None and np.any(item.mask):
        values = np.where(np.broadcast_to(item.mask, values.shape), np.nan, values)
    return fits.ImageHDU(_numbers(values, where), header)


def _photons_by_uncertainty(values: Array, sigma: Array | None, mask: Any, where: str) -> Array:
    """Photons with their sky, by a standard deviation whose square rises along a line with the values."""
    if sigma is not None and np.shape(sigma) == values.shape:
        good = np.isfinite(values) & np.isfinite(sigma) & (np.asarray(sigma) > 0)
        if mask is not None:
            good &= ~np.broadcast_to(mask, values.shape)
        x, variance = values[good].astype(float), np.asarray(sigma, float)[good] ** 2
        if len(x) > 2 and np.ptp(x) > 0:
            slope, level = np.polyfit(x, variance, 1)
            if slope > 0 and np.abs(slope * x + level - variance).mean() < _LINE * variance.mean():
                return np.asarray((values + level / slope) / slope)
    raise D4LensError(
        f"{where} has an uncertainty whose square does not rise along a line with the values, as that of photons does; set "
        "uncertainty to None and tell gain, exposure and sky"
    )


def _picture_bytes(picture: Any, where: str) -> bytes:
    stream = io.BytesIO()
    try:
        picture.save(stream, "TIFF")
    except Exception as error:  # Pillow has no TIFF of this mode, or its file is damaged
        raise D4LensError(
            f"{where} is a picture of mode {picture.mode} that cannot be read ({str(error)[:120]}); convert it to greyscale "
            "of mode L, I;16 or F"
        ) from None
    return stream.getvalue()


def _plain(image: Array, unit: str) -> Callable[[str | None], Raw]:
    return lambda band: Raw(image, Header(unit=unit))


def _stack(array: Array, where: str) -> list[Array]:
    """List the images of an array; axes of length 1 do not count."""
    shape = array.shape
    if 0 in shape:
        raise D4LensError(f"{where} of shape {shape} were given, which are empty; {_TAKEN}")
    if array.ndim > 2:
        array = array.reshape([side for side in shape if side > 1])
    if array.ndim == 2:
        return [np.ascontiguousarray(array)]
    if array.ndim == 3 and array.shape[-1] > _COLOURS:
        return list(np.ascontiguousarray(array))
    hint = ""
    if array.ndim in (3, 4) and 1 < array.shape[-1] <= _COLOURS:
        hint = f"; if its last axis is {array.shape[-1]} colours, choose one: images[..., 0]"
    elif array.ndim == 4:
        hint = "; choose one of its channels: images[:, 0]"
    raise D4LensError(f"images of shape {shape} were given; one is (N, N), a stack (B, N, N){hint}")


def _array(item: Any, where: str) -> Array:
    """Have numpy make an array of an object; masked entries are NaN."""
    if isinstance(item, Tensor):
        return _tensor(item, where)
    if _is(item, "pandas", "DataFrame") or _is(item, "pandas", "Series"):
        return _frame(item, where)
    if hasattr(item, "filled") and np.any(getattr(item, "mask", False)):  # numpy's or astropy's
        item = item.astype(float).filled(np.nan)
    if _is(item, "astropy.units", "Quantity"):
        return _value_and_unit(item.value, item.unit)[0]
    try:
        array = np.asarray(item)
    except Exception as error:  # the object's own: cupy and sparse containers refuse, dask and h5py may fail to read
        raise D4LensError(
            f"{where} is {_kind(item)}, of which numpy makes no array ({str(error)[:120]}); {_TAKEN}"
        ) from None
    if array.ndim == 0:
        raise D4LensError(f"{where} is {_kind(item)}; {_TAKEN}, or a path")
    return array


def _numbers(array: Array, where: str) -> Array:
    """Real numbers in native byte order and a precision that numpy's functions take."""
    dtype = array.dtype
    if dtype.name in ("float16", "bfloat16"):  # photon counts overflow the one, the other is jax's
        return array.astype(np.float32)
    if dtype.kind == "O":
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError, OverflowError):
            raise D4LensError(f"{where} holds Python objects that are no real numbers; {_TAKEN}") from None
    if dtype.kind not in "fiu":
        remedy = {
            "b": "a mask is no image; give the image's values",
            "c": "give its real part or its modulus",
            "V": "give one of its fields",
        }.get(dtype.kind, _TAKEN)
        raise D4LensError(f"{where} holds values of type {dtype}; {remedy}")
    if dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _tensor(tensor: Tensor, where: str) -> Array:
    if tensor.is_meta:
        raise D4LensError(f"{where} is a tensor on the device meta, which holds no values; give one with values")
    try:
        tensor = tensor.detach()
        if tensor.is_nested:
            tensor = torch.stack(tensor.unbind())
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        tensor = tensor.cpu().resolve_conj().resolve_neg()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        return tensor.numpy()
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0][:120]
        raise D4LensError(f"{where} is a tensor that has no array ({reason}); give a dense one of float32") from None


def _frame(frame: Any, where: str) -> Array:
    """Make an array of a table of numbers."""
    import pandas as pd

    columns = list(frame.items()) if frame.ndim == 2 else [(frame.name, frame)]
    for name, column in columns:
        if not pd.api.types.is_numeric_dtype(column) and frame.ndim == 2:
            raise D4LensError(
                f"{where} is a pandas DataFrame whose column {name!r} holds {column.dtype}; give its pixels as numbers, or "
                f"its paths as a list: list(frame[{name!r}])"
            )
    if frame.ndim == 1 and not pd.api.types.is_numeric_dtype(frame):
        return np.asarray(frame.to_numpy(object))
    if any(pd.api.types.is_extension_array_dtype(column.dtype) for _, column in columns):
        return np.asarray(frame.to_numpy(np.float64, na_value=np.nan))
    return np.asarray(frame.to_numpy())


def _unit_of(item: Any) -> str:
    return _value_and_unit(item.value, item.unit)[1] if _is(item, "astropy.units", "Quantity") else ""


def _value_and_unit(values: Any, unit: Any) -> tuple[Array, str]:
    """Values and unit of an image, in a unit of photons where it is a multiple of one; "" for none."""
    from astropy import units

    values = np.asarray(values)
    if unit is None:
        return values, ""
    for name in _IMAGE_UNITS:
        if unit.is_equivalent(units.Unit(name)):
            scale = unit.to(units.Unit(name))
            return values if scale == 1 else values * scale, name
    return values, unit.to_string().replace(" / ", "/")


def to_number(name: str, value: Any) -> float:
    """Read a number.

    Parameters
    ----------
    name : str
        The argument, which says in which unit.
    value : float, str or astropy.units.Quantity
        Its value.

    Returns
    -------
    float
        In the argument's unit.

    Raises
    ------
    D4LensError
        For anything else.
    """
    if _is(value, "astropy.units", "Quantity"):
        from astropy import units

        units_taken = _UNITS.get(name, ("",))
        for unit in units_taken:
            if value.unit.is_equivalent(units.Unit(unit)):
                value = value.to_value(units.Unit(unit))
                break
        else:
            raise D4LensError(
                f"{name} was given in {value.unit}; give it in {_UNITS.get(name, ('a plain number',))[0]}"
            )
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise D4LensError(f"{name} takes a number, not {value!r}") from None
    size = getattr(value, "shape", ())
    if tuple(size) not in ((), (1,)):
        raise D4LensError(
            f"{name} takes one number for all images of a call, not {_kind(value)} of shape {tuple(size)}"
        )
    try:
        if isinstance(value, (bool, np.bool_, complex, bytes)):
            raise TypeError
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise D4LensError(f"{name} takes a number, not {_kind(value)}") from None


def _is_iterator(item: Any) -> bool:
    """Something to run through that is no array: a generator, a set, a map."""
    arrays = ("__array__", "__array_interface__", "__dlpack__", "__cuda_array_interface__")
    return isinstance(item, Iterable) and not any(hasattr(item, name) for name in arrays)


def _is(item: Any, module: str, name: str) -> bool:
    """Whether an object is of a class of a package, which is not imported for it."""
    found = sys.modules.get(module)
    return found is not None and isinstance(item, getattr(found, name))


def _kind(item: Any) -> str:
    """Name an object's type with its article, such as "a torch.Tensor"."""
    kind = type(item)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
    )
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
