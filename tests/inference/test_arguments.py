"""Objects of Python as images: converted where the meaning is plain, else refused in a sentence with the right cause."""

import decimal
import io

import numpy as np
import pandas as pd
import pytest
import torch
from astropy import units
from astropy.io import fits
from astropy.nddata import CCDData, Cutout2D, NDData, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.utils.masked import Masked
from astropy.wcs import WCS
from PIL import Image

from d4lens.data.images import prepare, read_instrument
from d4lens.errors import D4LensError
from d4lens.inference.arguments import image_sources, instrument_values, names_of
from d4lens.observation import Observation

COUNTS = np.random.default_rng(0).poisson(30, (20, 20))
COUNTS[0, 0] = 61
TENSOR = torch.from_numpy(COUNTS).double()
HEADER = fits.Header(
    {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -0.05 / 3600, "CDELT2": 0.05 / 3600, "BUNIT": "electron"}
)
NAMES = ("pixel_scale", "psf", "gain", "exposure", "sky", "band")


class Arraylike:
    """As xarray's and dask's arrays are: numpy makes an array of it, or it fails to."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if self.array is None:
            raise RuntimeError("the cluster is gone")
        return self.array


def saved(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


PLAIN = {
    "bfloat16": TENSOR.bfloat16(),
    "sparse": TENSOR.to_sparse(),
    "sparse rows": TENSOR.to_sparse_csr(),
    "with gradients": TENSOR.clone().requires_grad_(),
    "a parameter": torch.nn.Parameter(TENSOR),
    "a negated view": torch.complex(TENSOR, -TENSOR).conj().imag,
    "quantised": torch.quantize_per_tensor(TENSOR.float(), 1.0, 0, torch.quint8),
    "channel last": COUNTS[:, :, None],
    "channel and batch": COUNTS[None, None],
    "a list of lists": COUNTS.tolist(),
    "a list of rows": list(COUNTS),
    "a list of tensors' rows": list(TENSOR),
    "objects": COUNTS.astype(object),
    "decimals": np.array([[decimal.Decimal(int(k)) for k in row] for row in COUNTS]),
    "big-endian": COUNTS.astype(">f4"),
    "long double": COUNTS.astype(np.longdouble),
    "an unsigned tensor": TENSOR.to(torch.uint16),
    "numpy's matrix": np.matrix(COUNTS),
    "an array-like": Arraylike(COUNTS),
    "a DataFrame": pd.DataFrame(COUNTS),
    "a DataFrame that may lack values": pd.DataFrame(COUNTS).astype("Int64"),
    "the bytes of a file": saved(COUNTS),
    "an open file": io.BytesIO(saved(COUNTS)),
    "8 bits": Image.fromarray(COUNTS.astype(np.uint8)),
    "16 bits": Image.fromarray(COUNTS.astype(np.uint16)),
    "32 bits": Image.fromarray(COUNTS.astype(np.int32)),
    "a float picture": Image.fromarray(COUNTS.astype(np.float32)),
    "grey as colour": Image.fromarray(COUNTS.astype(np.uint8)).convert("RGB"),
    "no dimension": COUNTS * units.dimensionless_unscaled,
}


HALVES = COUNTS.astype(np.float16)
HALF = {
    "an array": HALVES,
    "a tensor": torch.from_numpy(HALVES),
    "a file": saved(HALVES),
    "planes": saved(np.stack([HALVES, HALVES])),
    "a CCDData": CCDData(HALVES, unit="electron"),
    "a cutout": Cutout2D(HALVES, (9.5, 9.5), 20),
}


@pytest.mark.parametrize("name", HALF)
def test_half_precision_does_not_overflow_where_photons_are_counted(name):
    raw = image_sources(HALF[name])[0].read("0" if name == "planes" else None)
    assert raw.pixels.dtype == np.float32
    assert np.array_equal(raw.pixels, HALVES)
    grid = Observation(20, 0.05, 0.08, 10.0)
    done = prepare(raw, grid, read_instrument(exposure=6000, sky=180_000, pixel_scale=0.05))
    assert np.allclose(done.pixels - done.pixels.min(), (COUNTS - COUNTS.min()) * 6000.0)


@pytest.mark.parametrize("name", PLAIN)
def test_what_has_one_meaning_is_that_image(name):
    (found,) = image_sources(PLAIN[name])
    raw = found.read(None)
    assert raw.pixels.shape == (20, 20)
    assert raw.pixels.dtype.kind in "fiu"
    assert raw.pixels.dtype.isnative
    assert np.array_equal(raw.pixels, COUNTS)
    assert (raw.header.unit, raw.header.pixel_scale) == ("", None)


def test_several_images_come_in_their_order():
    other = COUNTS + 1
    for given in (
        np.stack([COUNTS, other]),
        np.stack([COUNTS, other])[:, None],
        np.stack([COUNTS, other])[..., None],
        [COUNTS, other[None]],
        (image for image in (COUNTS, other)),
        [COUNTS.tolist(), other.tolist()],
        [TENSOR, Arraylike(other)],
        [fits.PrimaryHDU(COUNTS), pd.DataFrame(other)],
        pd.Series([COUNTS, other]),
        np.array([COUNTS, other[:19]], dtype=object),
    ):
        first, second = image_sources(given)
        assert (first.name, second.name) == ("0", "1")
        assert np.array_equal(first.read(None).pixels, COUNTS)
        assert np.array_equal(second.read(None).pixels[:19], other[:19])


@pytest.mark.parametrize(
    ("given", "unit", "scale"),
    [
        (fits.PrimaryHDU(COUNTS, HEADER), "electron", 0.05),
        (fits.ImageHDU(COUNTS.astype(np.uint16), HEADER), "electron", 0.05),
        (fits.CompImageHDU(COUNTS.astype(np.float32), HEADER), "electron", 0.05),
        (fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(COUNTS, HEADER, name="SCI")]), "electron", 0.05),
        (Cutout2D(np.pad(COUNTS, 5), (14.5, 14.5), 20, wcs=WCS(HEADER)), "", 0.05),
        (CCDData(COUNTS, unit="electron", wcs=WCS(HEADER)), "electron", 0.05),
        (NDData(COUNTS, unit="adu"), "adu", None),
        (COUNTS * units.electron, "electron", None),
        (COUNTS / 1000 * units.Unit("1000 photon"), "photon", None),
        (COUNTS * 60 * units.electron / units.min, "electron/s", None),
        (COUNTS * units.MJy / units.sr, "MJy/sr", None),
    ],
)
def test_headers_and_units_come_with_their_image(given, unit, scale):
    raw = image_sources(given)[0].read(None)
    assert np.allclose(raw.pixels, COUNTS)
    assert raw.header.unit == unit
    assert raw.header.pixel_scale == (scale if scale is None else pytest.approx(scale))


def test_what_is_read_of_an_object_is_what_its_file_says(tmp_path):
    hdus = fits.HDUList(
        [
            fits.PrimaryHDU(header=fits.Header({"EXPTIME": 90.0})),
            fits.ImageHDU(COUNTS / 90, HEADER, name="SCI"),
            fits.ImageHDU(COUNTS * 0.0, name="B"),
        ]
    )
    hdus.writeto(tmp_path / "x.fits")
    before = [hdu.data.copy() for hdu in hdus[1:]]
    for band in (None, "B", "1"):
        ours, files = (image_sources(given)[0].read(band) for given in (hdus, tmp_path / "x.fits"))
        assert np.array_equal(ours.pixels, files.pixels)
        assert (ours.header, ours.band) == (files.header, files.band)
    assert ours.header.exposure == 90
    for hdu, data in zip(hdus[1:], before, strict=True):
        assert np.array_equal(hdu.data, data)


def test_masked_pixels_are_no_numbers():
    mask = COUNTS > 40
    assert mask.sum() > 3
    for given in (
        np.ma.masked_array(COUNTS, mask),
        Masked(COUNTS, mask=mask),
        Masked(COUNTS * units.electron, mask=mask),
        CCDData(COUNTS, unit="electron", mask=mask),
        NDData(COUNTS, mask=mask),
    ):
        pixels = image_sources(given)[0].read(None).pixels
        assert np.array_equal(np.isnan(pixels), mask)
        assert np.array_equal(pixels[~mask], COUNTS[~mask])


def test_an_uncertainty_of_photons_gives_the_photons_back():
    """Gain and sky from the line on which the variance lies: here five photons a unit over a sky of 30, and 9 of read noise."""
    values, variance = (COUNTS - 30) / 5, (COUNTS + 9) / 25
    for given in (
        CCDData(values, unit="adu", uncertainty=VarianceUncertainty(variance)),
        CCDData(values, unit="adu", uncertainty=StdDevUncertainty(np.sqrt(variance))),
        CCDData(values, unit="adu", uncertainty=StdDevUncertainty(np.sqrt(variance) / 1e3, unit="1000 adu")),
    ):
        raw = image_sources(given)[0].read(None)
        assert np.allclose(raw.pixels, COUNTS + 9)
        assert raw.header.unit == "electron"


META = torch.zeros(20, 20, device="meta")
REFUSED = {
    "meta": (META, "image 0 is a tensor on the device meta, which holds no values"),
    "meta in a list": ([COUNTS, META], "image 1 is a tensor on the device meta"),
    "float8": (TENSOR.to(torch.float8_e4m3fn), "image 0 is a tensor that has no array"),
    "complex": (COUNTS * 1j, "complex128; give its real part or its modulus"),
    "complex tensor": (TENSOR.to(torch.complex64), "complex64; give its real part"),
    "bool": (COUNTS > 30, "bool; a mask is no image"),
    "bool tensor": (TENSOR > 30, "bool; a mask is no image"),
    "dates": (COUNTS.astype("M8[s]"), "holds values of type datetime64"),
    "fields": (np.zeros((9, 9), [("a", "f4")]), "give one of its fields"),
    "words": (np.array([["a"] * 9] * 9, object), "holds Python objects that are no real numbers"),
    "nothing": (None, "image 0 is a NoneType"),
    "a number": (3, "image 0 is an int"),
    "an object": (object(), "image 0 is an object"),
    "a list of nothing": ([None], "image 0 is a NoneType"),
    "a dict": ({"a": COUNTS}, r"a dict was given; give its images, such as list\(images.values\(\)\)"),
    "empty": (np.zeros((0, 20, 20)), r"shape \(0, 20, 20\) were given, which are empty"),
    "no side": (np.zeros((0, 0)), "which are empty"),
    "colours": (np.zeros((20, 20, 3)), "its last axis is 3 colours, choose one"),
    "channels": (np.zeros((2, 3, 20, 20)), "choose one of its channels"),
    "one axis": (np.zeros(9), r"images of shape \(9,\) were given"),
    "ragged": ([[1, 2], [3]], "rows of different lengths"),
    "lists in lists": ([[COUNTS, COUNTS]], "image 0 is a list; give one flat list"),
    "broken array-like": (Arraylike(None), "of which numpy makes no array .the cluster is gone"),
    "a table with words": (
        pd.DataFrame({"path": ["a"], "x": [1]}),
        r"pandas DataFrame whose column 'path' holds .*list\(",
    ),
    "a series of numbers": (pd.Series([1.0, 2.0]), r"images of shape \(2,\)"),
    "bytes of nothing": (b"hello", "5 bytes that are no .npy, .npz, FITS, PNG or TIFF file"),
    "no bytes": (b"", "0 bytes that are no"),
    "an empty path": ("", "an empty text is no path"),
    "an array of paths": (np.array(["nowhere.npy"]), "no file or folder nowhere.npy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_with_its_type(name):
    given, sentence = REFUSED[name]
    with pytest.raises(D4LensError, match=sentence) as refused:
        image_sources(given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (fits.HDUList([fits.PrimaryHDU(COUNTS), fits.ImageHDU(COUNTS, name="B")]), "holds 2 images .PRIMARY, B."),
        (fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])]), "image 0 holds no image"),
        (fits.PrimaryHDU(), "image 0 holds no image"),
        (Image.fromarray(COUNTS.astype(np.uint8)).convert("P"), "image 0 holds a palette"),
        (Image.fromarray(COUNTS.astype(np.uint8)).convert("RGB").convert("HSV"), "image 0 is a picture of mode HSV"),
        (CCDData(COUNTS, unit="adu", uncertainty=StdDevUncertainty(np.full((20, 20), 3.0))), "that of photons does"),
        (CCDData(COUNTS, unit="adu", uncertainty=UnknownUncertainty(COUNTS)), "that of photons does"),
        (NDData(COUNTS, meta={"A": object()}), "image 0 cannot be read"),
    ],
)
def test_an_object_that_is_unusable_inside_says_so_when_it_is_read(given, sentence):
    (source,) = image_sources(given)
    with pytest.raises(D4LensError, match=sentence):
        source.read(None)


def test_files_that_are_closed_or_text_are_told(tmp_path):
    fits.PrimaryHDU(COUNTS).writeto(tmp_path / "x.fits")
    with fits.open(tmp_path / "x.fits") as opened:
        hdu = opened[0]
    with pytest.raises(D4LensError, match=r"image 0 cannot be read .*give its file's path"):
        image_sources(hdu)[0].read(None)
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(D4LensError, match="a file that cannot be read"):
        image_sources(closed)
    with pytest.raises(D4LensError, match="opened as text"):
        image_sources(io.StringIO("x"))


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("sky", "10", 10.0),
        ("sky", np.float32(3), 3.0),
        ("sky", torch.tensor(3.0, requires_grad=True), 3.0),
        ("sky", np.array([3]), 3.0),
        ("sky", 10 * units.ct / units.pix, 10.0),
        ("pixel_scale", 50 * units.mas, 0.05),
        ("pixel_scale", 0.05 * units.arcsec / units.pix, 0.05),
        ("exposure", 20 * units.min, 1200.0),
        ("gain", 2 * units.photon / units.DN, 2.0),
        ("psf", 0.1 * units.arcsec, 0.1),
        ("psf", "psf.fits", "psf.fits"),
        ("band", np.int64(2), "2"),
        ("sky", None, None),
    ],
)
def test_what_is_told_becomes_a_number(name, value, number):
    assert instrument_values({name: value}, NAMES) == {
        name: number if isinstance(number, str | None) else pytest.approx(number)
    }


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("sky", "ten", "sky takes a number, not 'ten'"),
        ("sky", True, "sky takes a number, not a bool"),
        ("sky", [10], "sky takes a number, not a list"),
        ("sky", 1j, "sky takes a number, not a complex"),
        ("sky", 10**400, "sky takes a number"),
        ("sky", np.array([1, 2]), r"one number for all images of a call, not a numpy.ndarray of shape \(2,\)"),
        ("sky", torch.zeros((), device="meta"), "sky takes a number, not a torch.Tensor"),
        ("sky", 10 * units.s, "sky was given in s; give it in electron"),
        ("pixel_scale", 1 * units.pix, "pixel_scale was given in pix; give it in arcsec"),
        ("psf", True, "psf takes a number, not a bool"),
        ("band", 1.5, "band takes a name or a number from 0, not a float"),
        ("band", True, "band takes a name or a number from 0, not a bool"),
        ("pixelscale", 1, "nothing is called pixelscale; what can be given is pixel_scale, psf"),
    ],
)
def test_what_is_told_and_is_no_number_is_refused(name, value, sentence):
    with pytest.raises(D4LensError, match=sentence):
        instrument_values({name: value}, NAMES)


def test_names_come_in_a_list_or_between_commas():
    assert names_of("n, R_e,") == names_of(("n", "R_e")) == names_of(["n", "R_e"]) == ("n", "R_e")
    assert names_of(None) == names_of("") == ()
    for wrong in (3, b"n", ("n", 3)):
        with pytest.raises(D4LensError, match="free takes names"):
            names_of(wrong)
