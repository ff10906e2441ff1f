import numpy as np
import pytest

from d4lens import simulate
from d4lens.data.images.masks import _unpadded, dead, declared, without


def test_what_a_detector_leaves_is_found_and_photons_are_not():
    """At any sky, in counts, rescaled, sky-subtracted and as 8 bits."""
    for sky in (2, 10, 40):
        for k in simulate(n=3, seed=1, overrides={"sky": sky}).images:
            for image in (k, (k - k.min()) / np.ptp(k), k - np.float32(sky), np.maximum(k - np.float32(sky), 0)):
                assert not dead(image).any()
    for value in (0.0, 400.0, 65535.0):
        spoilt = k.copy()
        spoilt[60:63, 90:93] = value
        expected = np.zeros(k.shape, bool)
        expected[60:63, 90:93] = True
        assert np.array_equal(dead(spoilt), expected)
        assert np.array_equal(dead(spoilt * 0.3 - 2), expected)


def test_saturated_arcs_dead_columns_and_filled_borders_are_found():
    k = simulate(n=1, seed=1).images[0]
    saturated = np.minimum(k, 150)
    assert (dead(saturated) & (k < 150)).sum() == 0
    assert dead(saturated).sum() > 0.95 * (k >= 150).sum()
    column, border = k.copy(), k.copy()
    column[:, 70] = 0
    border[:, :40] = 0
    assert dead(column)[:, 70].all()
    assert dead(column).sum() == 150
    assert dead(border)[:, :40].all()
    assert not dead(border)[:, 40:].any()


@pytest.mark.parametrize("mode", ["constant", "edge", "mean", "maximum"])
def test_padding_of_any_width_is_found(mode):
    """15 of 75 pixels a side are more than a third of the image, which a clipped sky may be."""
    k = simulate(n=1, seed=1).images[0]
    for image in (k, (k - k.min()) / np.ptp(k)):
        padded = np.pad(image[15:135, 15:135], 15, mode=mode)
        inside = np.zeros(k.shape, bool)
        inside[15:135, 15:135] = True
        found = dead(padded)
        assert found[~inside].all()
        assert not found[18:132, 18:132].any()  # where the edge is repeated it goes too
    rows, columns = np.indices(k.shape) - 74.5
    aperture = np.hypot(rows, columns) < 60
    found = dead(np.where(aperture, k, 0))
    assert found[~aperture].mean() > 0.99
    assert not found[aperture].any()


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("pads", [((6, 6), (6, 6)), ((20, 20), (13, 13)), ((0, 0), (20, 0)), ((0, 6), (0, 0))])
def test_a_mirrored_or_wrapped_edge_is_padding(mode, pads):
    (top, bottom), (left, right) = pads
    for k in simulate(n=6, seed=3).images:
        for image in (k, (k - k.min()) / np.ptp(k), np.rint(255 * k / k.max()).astype(np.uint8)):
            inside = np.pad(np.ones(k.shape, bool), pads)
            if mode == "wrap":  # what is repeated may be the copy itself
                rows, columns = np.indices(inside.shape)
                inside &= (rows >= top + bottom) & (rows < 150) & (columns >= left + right) & (columns < 150)
            assert np.array_equal(dead(np.pad(image, pads, mode=mode)), ~inside)


def test_a_mirrored_edge_is_found_beside_masked_pixels():
    k = simulate(n=1, seed=3).images[0]
    padded = np.pad(k, 10, mode="reflect")
    padded[3, 40:60] = padded[80:90, 165] = np.nan
    found = dead(padded) | np.isnan(padded)
    assert np.array_equal(found, np.pad(np.zeros(k.shape, bool), 10, constant_values=True))


def test_rows_that_are_alike_by_chance_or_symmetry_are_data():
    """Few levels, faint skies and small images; a ring without noise is its own mirror image."""
    for sky in (2, 10, 40):
        for k in simulate(n=66, seed=7, overrides={"sky": sky}).images:
            eight = np.rint(255 * (k - k.min()) / np.ptp(k)).astype(np.uint8)
            for image in (k, eight, k[40:110, 30:100], eight[:40, :40]):
                assert _unpadded(image) == tuple(slice(0, side) for side in image.shape)
            assert not dead(k).any()
    rows, columns = np.indices((150, 150)) - np.array([70.0, 74.5])[:, None, None]
    assert not dead(np.exp(-((np.hypot(rows, columns) - 24) ** 2) / 90) + 1e-3 * np.hypot(rows, columns)).any()


def test_a_sky_clipped_at_zero_is_no_defect():
    k = simulate(n=1, seed=2).images[0]
    for level in (7, 10, 13):
        assert not dead(np.maximum(k - level, 0)).any()


@pytest.mark.parametrize(
    ("name", "header", "primary", "expected"),
    [
        ("DQ", {}, {}, [0, 1, 1, 1]),
        ("DQ", {}, {"TELESCOP": "JWST"}, [0, 1, 0, 1]),
        ("MASK", {"MP_SAT": 1, "MP_DETECTED": 0}, {}, [0, 0, 1, 1]),
        ("BPM", {}, {"TELESCOP": "HST"}, [0, 1, 1, 1]),
    ],
)
def test_bits_that_matter(name, header, primary, expected):
    values = np.array([[0, 1, 2, 3]], np.int32)
    assert declared(name, values, header, primary).astype(int).tolist() == [expected]


def test_errors_and_weights():
    values = np.array([[1.0, np.inf, np.nan, 0.0]])
    for name in ("ERR", "UNCERT", "VARIANCE"):
        assert declared(name, values, {}, {}).tolist() == [[False, True, True, False]]
    for name in ("WHT", "WEIGHT", "IVAR"):
        assert declared(name, values, {}, {}).tolist() == [[False, False, True, True]]
    assert not declared("WHT", np.zeros((2, 2)), {}, {}).any()


def test_masking_leaves_the_given_array_alone():
    image = np.arange(4, dtype=np.int16).reshape(2, 2)
    gone = without(image, image == 3)
    assert np.isnan(gone[1, 1])
    assert image[1, 1] == 3
    assert without(image, image > 9) is image
