import contextlib
import gzip
import io
import struct
import warnings
import zipfile

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d4lens.data.images.formats import Header, choose_image, parse_npy, read_fits, read_npy, read_npz, read_picture
from d4lens.errors import D4LensError


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4", "<u2", ">i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_byte_order_and_layout_is_read_right(make, dtype, order):
    array = np.asarray(make.photons(0), dtype, order=order)
    found = parse_npy(make.npy(array), "x")
    assert np.array_equal(found, array)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert found.flags.c_contiguous


class _Bomb:
    def __reduce__(self):
        raise AssertionError("unpickled")


def test_what_is_no_plain_array_is_refused_by_name(make):
    good = make.npy(np.ones((4, 4)))
    wrong = {
        b"": "is empty",
        b"PK\x03\x04zip": "is not an .npy array",
        good[:40]: "is not an .npy array",
        good[:-1]: "declares shape",
        good + b"x": "declares shape",
        good.replace(b"(4, 4)", b"(4, 5)"): r"declares shape \(4, 5\) of float64, 160 bytes, but holds 128",
        good.replace(b"(4, 4), }", b"(99999999,99999999)}"): "declares shape|not an .npy",
        good.replace(b"(4, 4)", b"(-4,4)"): "declares shape|not an .npy",
        good.replace(b"'<f8'", b"'<q9'"): "is not an .npy array",
        good.replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"): "is not an .npy array",
        make.npy(np.ones((4, 4), complex)): "type complex128",
        make.npy(np.ones((4, 4), bool)): "type bool",
        make.npy(np.full((4, 4), "x")): "type <U1",
        make.npy(np.ones((4, 4), np.longdouble)): "type float128",
        make.npy(np.zeros((2, 2), [("a", "<f8")])): "type ",
        make.npy(np.array([[None, {}]], object)): "pickled Python objects, which are never loaded",
    }
    for data, sentence in wrong.items():
        with pytest.raises(D4LensError, match=f"^1.npy .*({sentence})"):
            parse_npy(data, "1.npy")


@pytest.mark.parametrize(
    ("shape", "body"), [((1,) * 40, 8), ((0, 10**30), 0), ("(True, 8)", 64), ((2**63, 0), 0), ((10**30, 8), 64)]
)
def test_a_shape_that_no_array_can_have_is_refused(shape, body):
    """Each declares as many bytes as follow it, or far more, and gets by numpy's own reading of the header."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(body)
    with pytest.raises(D4LensError, match=r"^x declares (a )?shape"):
        parse_npy(data, "x")


@given(data=st.binary(max_size=200), where=st.integers(0, 127), byte=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_damaged_headers_raise_nothing_but_the_sentence(data, where, byte):
    stream = io.BytesIO()
    np.save(stream, np.ones((4, 4)))
    damaged = bytearray(stream.getvalue())
    damaged[where] = byte
    for candidate in (bytes(damaged), b"\x93NUMPY\x01\x00" + data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(D4LensError):
                assert parse_npy(candidate, "x").dtype.kind in "fiu"


def test_the_shortest_of_three_axes_counts_the_bands(make):
    cube = np.stack([make.photons(i) for i in range(3)])
    for array in (cube, np.moveaxis(cube, 0, 2), cube[None]):
        raw = read_npy(make.npy(array), "x.npy", "2")
        assert np.array_equal(raw.pixels, cube[2])
        assert raw.band == "2"
    assert np.array_equal(read_npy(make.npy(cube[:1]), "x.npy").pixels, cube[0])
    for array, band, sentence in (
        (cube, None, r"x\.npy holds 3 images \(0, 1, 2\); choose one by --band"),
        (cube, "3", r"x\.npy has no band '3'"),
        (cube[0], "g", "has no band 'g'"),
        (np.stack([cube, cube]), None, "has shape"),
        (cube[0, 0], None, "has shape"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            read_npy(make.npy(array), "x.npy", band)


def test_one_of_a_file_s_images_is_chosen():
    for names, band, place in (
        (("G",), None, 0),
        (("ERR", "SCI", "CTX"), None, 1),
        (("mask", "image"), None, 1),
        (("DQ:0", "DQ:1", "F606W"), None, 2),
        (("DQ",), None, 0),
        (("G", "mask", "dq"), ("MASK", "DQ"), 1),
        (("G", "dq"), ("MASK", "DQ"), 1),
        (("G", "ERR"), ("MASK", "DQ"), 0),
        (("G", "R"), "1", 1),
    ):
        assert choose_image(names, band, "x") == place
    for names, band, sentence in (
        (("G", "R", "DQ"), None, r"x holds 2 images \(G, R\); choose one"),
        (("DQ", "ERR"), None, r"x holds 2 images \(DQ, ERR\); choose one"),
        (("G", "R"), ("MASK", "DQ"), r"x holds 2 images \(G, R\); choose one"),
        (("SCI", "DQ", "DQ"), ("MASK", "DQ"), "x has several bands 'DQ'; it holds SCI, DQ, DQ"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            choose_image(names, band, "x")


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def test_npz_arrays_are_chosen_by_name_or_number(make):
    a, b = make.photons(0), make.photons(1)
    assert np.array_equal(read_npz(npz(a=a), "x").pixels, a)
    assert np.array_equal(read_npz(npz(g=a, r=b), "x", "R").pixels, b)
    assert np.array_equal(read_npz(npz(g=a, r=b), "x", "0").pixels, a)
    assert np.array_equal(read_npz(npz(cube=np.stack([a, b])), "x", "1").pixels, b)
    assert read_npz(npz(g=a, r=b), "x", "r").band == "r"
    # The one that is read is the only one that must be sound.
    assert np.array_equal(read_npz(npz(image=a, names=np.array(["x", None], object)), "x", "image").pixels, a)


def test_an_npz_that_is_not_one_image_is_refused_by_name(make):
    a = make.photons(0)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(1 << 27))
    for data, band, sentence in (
        (npz(a=a, b=a), None, r"holds 2 images \(a, b\); choose one"),
        (npz(a=a, b=a), "c", "has no band 'c'; it holds a, b"),
        (npz(), None, "holds no array"),
        (npz(a=np.array([None], object)), None, "'a' holds pickled Python objects, which are never loaded"),
        (npz(a=a)[:-30], None, "is not an .npz file"),
        (b"", None, "is not an .npz file"),
        (bomb.getvalue(), None, "unpacks to 134 MB"),
    ):
        with pytest.raises(D4LensError, match=f"^x.npz.*{sentence}"):
            read_npz(data, "x.npz", band)


def fits_bytes(*hdus) -> bytes:
    stream = io.BytesIO()
    fits.HDUList(
        [fits.PrimaryHDU() if i == 0 and not isinstance(hdu, fits.PrimaryHDU) else hdu for i, hdu in enumerate(hdus)]
    ).writeto(stream)
    return stream.getvalue()


def primary(pixels, **cards) -> fits.PrimaryHDU:
    hdu = fits.PrimaryHDU(pixels)
    hdu.header.update(cards)
    return hdu


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", "<f4", ">u2"])
def test_fits_pixels_come_in_native_order(make, dtype):
    image = make.photons(0).astype(dtype)
    raw = read_fits(fits_bytes(primary(image)), "x.fits")
    assert np.array_equal(raw.pixels, image)
    assert raw.pixels.dtype.isnative
    assert raw.header == Header()
    assert np.array_equal(read_fits(gzip.compress(fits_bytes(primary(image))), "x.fits.gz").pixels, image)


@pytest.mark.parametrize(
    "cards",
    [
        {"CDELT1": -0.05 / 3600, "CDELT2": 0.05 / 3600},
        {"CD1_1": -0.03 / 3600, "CD1_2": 0.04 / 3600, "CD2_1": 0.04 / 3600, "CD2_2": 0.03 / 3600},
        {
            "CDELT1": -0.05,
            "CDELT2": 0.05,
            "CUNIT1": "arcsec",
            "CUNIT2": "arcsec",
            "PC1_1": 0.6,
            "PC1_2": -0.8,
            "PC2_1": 0.8,
            "PC2_2": 0.6,
        },
    ],
)
def test_the_pixel_scale_is_the_wcs_s(make, cards):
    hdu = primary(make.photons(0), CTYPE1="RA---TAN", CTYPE2="DEC--TAN", **cards)
    scale = read_fits(fits_bytes(hdu), "x").header.pixel_scale
    assert scale == pytest.approx(0.05, rel=1e-9)
    assert scale == pytest.approx(3600 * proj_plane_pixel_scales(WCS(hdu.header))[0], rel=1e-9)


def test_headers_say_what_they_know_and_nothing_else(make):
    image = make.photons(0)
    science = fits.ImageHDU(image, name="SCI")
    science.header.update({"BUNIT": "ELECTRONS/S", "CCDGAIN": 2.0})
    data = fits_bytes(primary(None, EXPTIME=1200.0, PIXSCALE=0.04), science, fits.ImageHDU(image, name="ERR"))
    assert read_fits(data, "x").header == Header(0.04, "ELECTRONS/S", 1200.0, 2.0)
    linear = primary(image, CDELT1=1.0, CDELT2=1.0, GAIN=0.0, EXPTIME="long")
    assert read_fits(fits_bytes(linear), "x").header == Header()
    skewed = primary(image, CTYPE1="RA---TAN", CDELT1=-1e-5, CDELT2=2e-5)
    header = read_fits(fits_bytes(skewed), "x").header
    assert (header.pixel_scale, header.unread[:37]) == (None, "its pixels are 0.036 x 0.072 arcsec; ")


def test_fits_extensions_and_planes_are_chosen(make):
    a, b = make.photons(0), make.photons(1)
    data = fits_bytes(primary(None), fits.ImageHDU(a, name="F606W"), fits.ImageHDU(np.stack([a, b])[None], name="CUBE"))
    assert np.array_equal(read_fits(data, "x", "f606w").pixels, a)
    assert np.array_equal(read_fits(data, "x", "CUBE:1").pixels, b)
    assert np.array_equal(read_fits(data, "x", "2").pixels, b)
    with pytest.raises(D4LensError, match=r"holds 3 images \(F606W, CUBE:0, CUBE:1\)"):
        read_fits(data, "x")
    assert np.array_equal(read_fits(fits_bytes(primary(a[None, None])), "x").pixels, a)
    packed = fits_bytes(primary(None), fits.CompImageHDU(a.astype(np.int32), name="SCI"))
    assert np.array_equal(read_fits(packed, "x.fits.fz").pixels, a)
    table = fits.BinTableHDU.from_columns([fits.Column("a", "D", array=np.ones(3))])
    with pytest.raises(D4LensError, match=r"x.fits holds no image, only tables or headers"):
        read_fits(fits_bytes(primary(None), table), "x.fits")


@pytest.mark.parametrize("bzero", [None, 32768])
def test_blank_pixels_hold_no_data(make, bzero):
    counts = make.photons(0).astype(np.int16)
    raw = counts if bzero is None else (counts.astype(np.int32) - bzero).astype(np.int16)
    raw[3, 4] = raw[5, 6] = -7
    hdu = fits.PrimaryHDU(raw)
    hdu.header["BLANK"] = -7
    if bzero:
        hdu.header["BZERO"], hdu.header["BSCALE"] = bzero, 1
    gone = np.zeros(counts.shape, bool)
    gone[3, 4] = gone[5, 6] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = io.BytesIO()
        # Written as it stands: astropy would scale the values by the cards.
        header = hdu.header.tostring().encode()
        stream.write(header.ljust(-(-len(header) // 2880) * 2880))
        stream.write(raw.astype(">i2").tobytes().ljust(-(-raw.nbytes // 2880) * 2880, b"\0"))
    found = read_fits(stream.getvalue(), "x").pixels
    assert np.array_equal(np.isnan(found), gone)
    assert np.array_equal(found[~gone], counts[~gone])


def test_extensions_beside_an_image_say_where_it_holds_data(make):
    counts = make.photons(0).astype(np.float32)
    quality, error, weight = np.zeros(counts.shape, np.int16), np.ones(counts.shape), np.ones(counts.shape)
    quality[1, 2], error[3, 4], weight[5, 6] = 64, np.inf, 0
    beside = [fits.ImageHDU(values, name=name) for name, values in (("DQ", quality), ("ERR", error), ("WHT", weight))]
    small = fits.ImageHDU(np.ones((3, 3), np.int16), name="BPM")
    another = fits.ImageHDU(np.ones(counts.shape, np.int16), name="DQ", ver=2)
    for first in ([fits.PrimaryHDU(counts)], [fits.PrimaryHDU(), fits.ImageHDU(counts, name="SCI")]):
        found = read_fits(fits_bytes(*first, *beside, small, another), "x").pixels
        assert np.argwhere(np.isnan(found)).tolist() == [[1, 2], [3, 4], [5, 6]]
        assert np.isfinite(read_fits(fits_bytes(*first, *beside[:1]), "x", "DQ").pixels).all()


def test_arrays_beside_that_of_an_npz_say_where_it_holds_data(make):
    counts = make.photons(0).astype(np.float32)
    mask, weight = np.zeros(counts.shape, bool), np.ones(counts.shape)
    mask[1, 2], weight[5, 6] = True, 0
    beside = {"mask": mask, "IVAR": weight, "bpm": np.ones((3, 3), bool)}
    for band in (None, "image", "0"):
        found = read_npz(npz(image=counts, **beside), "x", band).pixels
        assert np.argwhere(np.isnan(found)).tolist() == [[1, 2], [5, 6]]
    assert np.array_equal(read_npz(npz(image=counts, **beside), "x", "IVAR").pixels, weight)


def test_damaged_fits_files_are_refused_by_name(make):
    good = fits_bytes(primary(make.photons(0).astype(float)))
    vast = good.replace(b"NAXIS1  =                   48", b"NAXIS1  =            300000000")
    for data, sentence in (
        (good[:-4000], "truncated or damaged"),
        (good[:1000], "truncated or damaged|no image"),
        (b"", "is empty"),
        (b"no fits at all", "is no FITS file"),
        (b"BZh9" + good, "is no FITS file"),
        (vast, "truncated or damaged|too large"),
        (gzip.compress(good)[:-100], "is damaged gzip"),
        (gzip.compress(bytes(1 << 27), 1), "unpacks to more than 67 MB"),
    ):
        with pytest.raises(D4LensError, match=f"^x.fits.*({sentence})"):
            read_fits(data, "x.fits")


def picture(array, kind="PNG", mode=None, **options) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_pictures_keep_every_bit(make, kind, dtype):
    image = make.photons(0).clip(0, 255).astype(dtype) * (1 if dtype is np.uint8 else 257)
    raw = read_picture(picture(image, kind), "x")
    assert np.array_equal(raw.pixels, image)
    assert raw.pixels.dtype == dtype


def test_channels_and_frames_are_chosen(make):
    colour = np.stack([make.photons(i).clip(0, 255) for i in range(3)], 2).astype(np.uint8)
    assert np.array_equal(read_picture(picture(colour), "x", "G").pixels, colour[:, :, 1])
    assert np.array_equal(read_picture(picture(colour), "x", "2").pixels, colour[:, :, 2])
    with pytest.raises(D4LensError, match=r"holds 3 images \(R, G, B\)"):
        read_picture(picture(colour), "x")
    grey = np.repeat(colour[:, :, :1], 3, 2)
    assert np.array_equal(read_picture(picture(grey), "x").pixels, grey[:, :, 0])
    opaque = np.dstack([grey, np.full(grey.shape[:2], 255, np.uint8)])
    assert np.array_equal(read_picture(picture(opaque), "x").pixels, grey[:, :, 0])
    floats = [Image.fromarray(make.photons(i).astype(np.float32)) for i in range(2)]
    stream = io.BytesIO()
    floats[0].save(stream, "TIFF", save_all=True, append_images=floats[1:])
    assert np.array_equal(read_picture(stream.getvalue(), "x", "1").pixels, np.asarray(floats[1]))


def test_pictures_that_are_no_intensities_are_refused_by_name(make):
    image = make.photons(0).clip(0, 255).astype(np.uint8)
    veiled = np.dstack([image, image, image, image])
    deep = bytearray(picture(np.dstack([image] * 3) * np.array([1, 0, 1], np.uint8)))
    deep[24] = 16  # bits a channel, its checksum mended below
    deep[29:33] = struct.pack(">I", zipfile.crc32(bytes(deep[12:29])))
    wide = bytearray(picture(image))
    wide[16:24] = struct.pack(">II", 40000, 40000)
    wide[29:33] = struct.pack(">I", zipfile.crc32(bytes(wide[12:29])))
    for data, sentence in (
        (picture(image, mode="P"), "holds a palette"),
        (picture(image, mode="1"), "mode 1"),
        (picture(veiled), "transparent pixels"),
        (bytes(deep), "16 bits, which is not read"),
        (bytes(wide), "too large|bomb"),
        (picture(image)[:-60], "truncated or damaged"),
        (b"", "is empty"),
        (b"\xff\xd8\xff jpeg", "is not a readable PNG or TIFF"),
    ):
        with pytest.raises(D4LensError, match=f"^x.png.*({sentence})"):
            read_picture(data, "x.png")


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_damage_anywhere_ends_in_an_image_or_one_sentence(make, data):
    """Bytes changed and ends cut off, in every format."""
    image = make.photons(0)
    name, reader, good = data.draw(
        st.sampled_from(
            [
                ("x.npz", read_npz, npz(a=image)),
                ("x.fits", read_fits, fits_bytes(primary(None), fits.ImageHDU(image.astype("f4"), name="SCI"))),
                ("x.png", read_picture, picture(image.astype(np.uint16))),
                ("x.tif", read_picture, picture(image.astype(np.uint16), "TIFF")),
            ]
        )
    )
    damaged = bytearray(good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=4)):
        if place < len(damaged):
            damaged[place] = byte
    reason, pixels = "", image
    try:
        pixels = reader(bytes(damaged), name).pixels
    except D4LensError as error:
        reason = str(error)
    assert pixels.ndim == 2
    assert pixels.dtype.kind in "fiu"
    assert not reason or reason.startswith(name)
    assert "\n" not in reason
