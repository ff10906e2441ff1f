import contextlib
import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d4lens.data import images
from d4lens.data.images import COUNTS, NORMALISED, as_image, bin_pixels, find, observe, parse_npy, read, recover_counts
from d4lens.errors import D4LensError


def test_genuine_images_are_counts(real_samples):
    sources = list(find([real_samples]))
    assert len(sources) == 15
    for source in sources:
        image = source.load()
        counts = recover_counts(image, sky=10.0)
        assert counts.is_counts
        assert 600 <= counts.n_levels <= 1000
        assert counts.k_min in (0, 1, 2)
        assert np.abs((counts.k - counts.k_min) / counts.n_levels - image).max() < 1e-9
        assert counts.sky_variance == pytest.approx(10, rel=0.2)
        narrow = recover_counts(image.astype(np.float32), sky=10.0)
        assert np.array_equal(narrow.k, counts.k)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@given(seed=st.integers(0, 10**6), n_levels=st.integers(8, 60000), scale=st.floats(1e-3, 1e3), shift=st.floats(-1, 1))
@settings(max_examples=40, deadline=None)
def test_counts_come_back_exactly(dtype, seed, n_levels, scale, shift):
    """Any lattice, at full or single precision; at full precision under any linear rescaling too."""
    random = np.random.default_rng(seed)
    rank = random.integers(0, n_levels + 1, (100, 100))
    rank[0, :3] = 0, 1, n_levels
    values = rank / n_levels
    if dtype is np.float64:
        values = (values + shift) * (scale * np.pi)  # never all whole: those would be taken for the counts themselves
    counts = recover_counts(values.astype(dtype), sky=0.0)
    assert counts.is_counts
    assert counts.n_levels == n_levels
    assert counts.k_min == 0
    assert np.array_equal(counts.k, rank)


def test_lattice_is_found_where_no_two_values_are_one_count_apart(make):
    rank = np.zeros((8, 8), int)
    rank.flat[:6] = 20, 40, 60, 83, 86, 43  # steps of 3 counts: 86 is no multiple of it
    counts = recover_counts(rank / 86, sky=0.0)
    assert counts.n_levels == 86
    assert np.array_equal(counts.k, rank)


def test_k_min_comes_from_the_sky(make):
    """Right on each of 60 images, whose faintest pixels differ; and the sky is what it comes from."""
    faintest = set()
    for seed in range(60):
        counts = make.photons(seed, n=150)
        image = make.disguise(counts)[0]
        assert np.array_equal(recover_counts(image, make.sky).k, counts)
        assert recover_counts(image, make.sky + 3).k_min == counts.min() + 3
        assert recover_counts(image, 0.0).k_min == 0  # never negative
        faintest.add(int(counts.min()))
    assert len(faintest) > 1


def test_k_min_survives_a_bright_corner(make):
    for seed in range(20):
        counts = make.photons(seed, n=100)
        counts[:15, :15] += 80  # a neighbouring galaxy
        found = recover_counts(make.disguise(counts)[0], make.sky)
        assert found.k_min == counts.min()


def test_images_off_every_lattice_are_flagged(make):
    random = np.random.default_rng(0)
    smooth = np.cumsum(random.normal(size=(150, 150)), axis=0)
    for image in (random.normal(size=(150, 150)), smooth, (make.photons(0) + random.normal(0, 0.3, (48, 48)))):
        assert not recover_counts(image, 10.0).is_counts
        assert not recover_counts(image.astype(np.float32), 10.0).is_counts
    mask = np.zeros((20, 20))
    mask[5:9] = 1
    assert not recover_counts(mask, 10.0).is_counts  # two levels are no photons
    with pytest.raises(D4LensError, match="constant or not finite"):
        recover_counts(np.ones((20, 20)), 10.0)
    with pytest.raises(D4LensError, match="constant or not finite"):
        recover_counts(np.full((20, 20), np.nan), 10.0)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float64, ">i4"])
def test_plain_counts_are_taken_as_they_are(make, dtype):
    counts = make.photons(3)
    found = recover_counts(counts.astype(dtype), sky=99.0)
    assert np.array_equal(found.k, counts)
    assert (found.k_min, found.n_levels) == (counts.min(), np.ptp(counts))
    assert not recover_counts((counts - 200).astype(np.int32), 10.0).is_counts


def test_observe_bins_and_names_units(make):
    counts = make.photons(1, n=49)
    seen = observe(make.disguise(counts)[0], make.sky, factor=2)
    assert seen.units == COUNTS
    assert seen.pixels.dtype == np.uint16
    assert seen.pixels.shape == (24, 24)
    assert np.array_equal(seen.pixels, counts[:48, :48].reshape(24, 2, 24, 2).sum((1, 3)))
    noise = np.random.default_rng(0).normal(size=(48, 48))
    plain = observe(noise, make.sky, factor=2)
    assert (plain.units, plain.pixels.dtype, plain.pixels.min(), plain.pixels.max()) == (NORMALISED, np.float32, 0, 1)
    binned = bin_pixels(noise, 2)
    assert np.allclose(plain.pixels, (binned - binned.min()) / np.ptp(binned), atol=1e-6)
    assert observe(make.disguise(counts)[0], make.sky, units=NORMALISED).units == NORMALISED
    assert observe(make.disguise(counts)[0], sky=0.0).units == NORMALISED
    assert observe(counts, sky=0.0, units=COUNTS).units == COUNTS
    with pytest.raises(D4LensError, match="no lattice of photon counts"):
        observe(noise, make.sky, units=COUNTS)
    with pytest.raises(D4LensError, match="exceed 65535"):
        observe(make.photons(0) * 100, make.sky, factor=2)
    with pytest.raises(D4LensError, match="leaves 4 of 16 pixels"):
        observe(make.photons(0, n=16), make.sky, factor=4)
    checks = np.indices((16, 16)).sum(0) % 2
    with pytest.raises(D4LensError, match="constant once binned"):
        observe(checks, make.sky, factor=2)


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


def test_a_search_for_a_lattice_that_is_not_there_is_short():
    """Blurred by an offset, these values leave many thousand lattices to try; each costs a sample and not the image."""
    image = (100 + np.random.default_rng(0).random((150, 150))).astype(np.float32)
    tried, strays = [], images._strays
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_strays", lambda scaled: tried.append(scaled.size) or strays(scaled))
        assert not recover_counts(image, 10.0).is_counts
    assert len(tried) > 100
    assert sum(tried) < 600 * len(tried)


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


def test_one_image_is_square_finite_and_not_constant(make):
    image = make.photons(0).astype(float)
    assert as_image(image, "x") is image
    assert np.array_equal(as_image(image[None], "x"), image)
    holes = image.copy()
    holes[3, 4] = holes[5, 6] = np.nan
    infinite = np.where(image == image.max(), np.inf, image)
    for array, sentence in (
        (image[:-1], r"x has shape \(47, 48\)"),
        (image[None, None], "has shape"),
        (np.stack([image, image]), "has shape"),
        (image[0], "has shape"),
        (image[:7, :7], "has shape"),
        (np.zeros((0, 0)), "has shape"),
        (holes, "2 pixels that are NaN or infinite, the first in row 3, column 4"),
        (infinite, "NaN or infinite"),
        (np.full((9, 9), 0.5), "x is constant: every pixel is 0.5"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            as_image(array, "x")


def test_images_are_found_lazily_in_files_folders_and_zips(make, tmp_path, pack):
    folder = tmp_path / "any" / "deep"
    folder.mkdir(parents=True)
    for number in (10, 2, 1):
        np.save(folder / f"{number}.npy", make.disguise(make.photons(number)))
    (folder / "notes.txt").write_text("x")
    (folder / "._1.npy").write_bytes(b"fork")
    (folder / "3.npy").write_bytes(b"broken")
    zipped = pack({"b/10.npy": make.npy(make.photons(10)), "b/9.npy": make.npy(make.photons(9)), "c.txt": b""}, "z.zip")
    sources = list(find([tmp_path / "any", zipped, str(folder / "2.npy")]))
    names = [source.name for source in sources]
    assert names == [
        *(str(folder / f"{number}.npy") for number in (1, 2, 3, 10)),
        f"{zipped}: b/9.npy",
        f"{zipped}: b/10.npy",
        str(folder / "2.npy"),
    ]
    assert np.array_equal(sources[5].load(), make.photons(10))
    assert np.array_equal(sources[1].load(), sources[6].load())
    with pytest.raises(D4LensError, match=r"3\.npy is not an .npy array"):
        sources[2].load()


def test_what_holds_no_image_is_named(make, tmp_path, pack):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    for path, sentence in (
        (tmp_path / "absent", "no file or folder"),
        (tmp_path / "empty", "empty holds no image"),
        (tmp_path / "a.jpg", "of no readable format"),
        (pack({"a.txt": b""}, "no.zip"), "no.zip holds no image"),
        (pack({"../a.npy": b""}, "evil.zip"), "leads outside"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            list(find([path]))
    with pytest.raises(D4LensError, match="cannot be read: no such file"):
        read(tmp_path / "absent.npy")
    with pytest.raises(D4LensError, match="of no readable format"):
        read(tmp_path / "a.jpg")
    with open(tmp_path / "huge.npy", "wb") as file:
        file.truncate(1 << 27)
    with pytest.raises(D4LensError, match="larger than 67 MB"):
        read(tmp_path / "huge.npy")
