import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d4lens import simulator
from d4lens.data.images import as_image, find, recover_counts
from d4lens.data.images import counts as module
from d4lens.data.images.counts import dark_sky, measure_noise
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


@pytest.fixture(scope="module")
def lenses() -> np.ndarray:
    """Photon counts of 48 simulated lenses whose arcs, along a diagonal, light two corners."""
    diagonal = simulator.preset("deeplense", {"gamma_phi": np.pi / 4, "source_phi": np.pi / 4})
    return simulator.render(simulator.draw(diagonal, 1, range(48)), diagonal).numpy().astype(int)


def scaled(counts: np.ndarray) -> np.ndarray:
    return (counts - counts.min()) / np.ptp(counts)


def test_k_min_survives_lit_corners(lenses):
    """Where the median of the corners was one too low in half of them."""
    for counts in lenses:
        assert np.array_equal(recover_counts(scaled(counts), 10.0).k, counts)
        assert np.array_equal(recover_counts(counts - counts.min(), 10.0).k, counts) or counts.min() <= 1


FINE = {
    "12 bits": lambda x: np.rint(x * 4095) / 4095,
    "16 bits": lambda x: np.rint(x * 65535) / 65535,
    "16 bits, single": lambda x: (np.rint(x * 65535) / 65535).astype(np.float32),
    "a 16-bit picture": lambda x: np.rint(x * 65535).astype(np.uint16),
    "a 16-bit picture cut off": lambda x: (x * 65535).astype(np.uint16),
    "part of 16 bits": lambda x: np.rint(x * 50000 + 3000).astype(np.uint16),
    "half precision": lambda x: x.astype(np.float16),
    "four digits": lambda x: np.round(x, 4),
}
COARSE = {
    "8 bits": lambda x: np.rint(x * 255) / 255,
    "8 bits, single": lambda x: (np.rint(x * 255) / 255).astype(np.float32),
    "an 8-bit picture": lambda x: np.rint(x * 255).astype(np.uint8),
    "an 8-bit picture cut off": lambda x: (x * 255).astype(np.uint8),
    "part of 8 bits": lambda x: np.rint(x * 231 + 12).astype(np.uint8),
    "part of 8 bits, rescaled": lambda x: np.rint(x * 231) / 231,
}


@pytest.mark.parametrize("kind", FINE)
def test_levels_finer_than_photons_lose_nothing(lenses, kind):
    for counts in lenses[:12]:
        assert np.array_equal(recover_counts(FINE[kind](scaled(counts)), 10.0).k, counts)


@pytest.mark.parametrize("kind", COARSE)
def test_levels_coarser_than_photons_are_no_counts(lenses, kind):
    for counts in lenses[:12]:
        found = recover_counts(COARSE[kind](scaled(counts)), 10.0)
        assert not found.is_counts
        assert found.n_levels in (231, 254, 255)
        per_level = np.ptp(counts) / found.n_levels
        assert found.noise.gain * per_level == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("kind", ["10 bits", "a 10-bit picture"])
def test_ten_bits_give_the_counts_or_none(lenses, kind):
    right = 0
    for counts in lenses:
        levels = np.rint(scaled(counts) * 1023)
        found = recover_counts(levels / 1023 if kind == "10 bits" else levels.astype(np.uint16), 10.0)
        right += found.is_counts
        assert not found.is_counts or np.array_equal(found.k, counts)
    assert right > 12


@pytest.mark.parametrize("n_levels", [255, 511, 1023])
def test_photons_with_a_format_s_number_of_levels_are_photons(n_levels):
    """The noise says so."""
    x = np.arange(150) - 74.5
    ring = 0.7 * n_levels * np.exp(-((np.hypot(x[:, None], x) - 30) ** 2) / 50)
    for seed in range(8):
        counts = np.random.default_rng(seed).poisson(ring + 10)
        counts[counts == counts.max()] = counts.min() + n_levels
        found = recover_counts(scaled(counts), 10.0)
        assert found.is_counts
        assert np.array_equal(found.k, counts)


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


def test_a_search_for_a_lattice_that_is_not_there_is_short():
    """Blurred by an offset, these values leave many thousand lattices to try; each costs a sample and not the image."""
    image = (100 + np.random.default_rng(0).random((150, 150))).astype(np.float32)
    tried, strays = [], module._strays
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_strays", lambda scaled: tried.append(scaled.size) or strays(scaled))
        assert not recover_counts(image, 10.0).is_counts
    assert len(tried) > 100
    assert sum(tried) < 600 * len(tried)


def test_the_noise_is_that_of_the_pixels_with_data(lenses):
    """Whatever stands behind the others, and however they lie."""
    rng = np.random.default_rng(0)
    for counts in lenses[:8]:
        hidden = rng.random(counts.shape) < 0.03
        hidden[40:80, 30:50] = True
        spoilt = np.where(hidden, np.nan, counts)
        whole, part = measure_noise(counts), measure_noise(spoilt)
        assert part.mean == pytest.approx(whole.mean, abs=0.4)
        assert part.variance == pytest.approx(whole.variance, rel=0.1)
        assert abs(part.gain - whole.gain) < 3 * part.gain_sigma
        assert part.gain_sigma < 3 * whole.gain_sigma
        found = recover_counts((spoilt - counts.min()) / np.ptp(counts), 10.0)
        assert found.is_counts
        assert np.array_equal(found.k[~hidden] - found.k_min, counts[~hidden] - counts[~hidden].min())
        assert abs(found.k_min - counts[~hidden].min()) <= 1


def test_where_few_pixels_hold_data_the_noise_is_uncertain():
    sky = np.random.default_rng(1).poisson(10, (60, 60)).astype(float)
    sky[np.indices(sky.shape).sum(0) % 3 > 0] = np.nan
    noise = measure_noise(sky)
    assert (noise.mean, noise.variance) == (pytest.approx(10, abs=0.8), pytest.approx(10, rel=0.2))
    assert noise.gain_sigma == np.inf
    lone = np.full((20, 20), np.nan)
    lone[3, 4], lone[12, 9] = 5, 7
    assert dark_sky(lone)[0] == 6
