import numpy as np
import pytest

from d4lens.data.images import COUNTS, NORMALISED, Header, Raw, prepare, read_instrument
from d4lens.errors import D4LensError
from d4lens.flags import Flag
from d4lens.observation import Observation, bin_pixels

GRID = Observation(48, 0.1, 0.08625, 40.0)


def blob(n: int, scale: float, flux: float = 4e4, sigma: float = 0.4) -> np.ndarray:
    """Mean photons a pixel of a Gaussian of `flux` photons at (0.3, -0.2) arcsec."""
    x = (np.arange(n) - (n - 1) / 2) * scale
    light = np.exp(-0.5 * (((x - 0.3) / sigma) ** 2 + ((x[:, None] + 0.2) / sigma) ** 2))
    return flux * light * scale**2 / (2 * np.pi * sigma**2)


def exposed(n: int, scale: float, sky: float = 40.0, seed: int = 0) -> np.ndarray:
    """Photons (n, n) over a sky of `sky` per 0.1 arcsec square."""
    return np.random.default_rng(seed).poisson(blob(n, scale) + sky * (scale / 0.1) ** 2)


def place(pixels: np.ndarray, scale: float = 0.1) -> tuple[float, float, float]:
    """Flux, and centroid in arcsec, of what stands above the sky."""
    light = np.nan_to_num(pixels - 40.0)
    x = (np.arange(len(pixels)) - (len(pixels) - 1) / 2) * scale
    return light.sum(), (light * x).sum() / light.sum(), (light * x[:, None]).sum() / light.sum()


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_published_images_go_the_way_they_always_went(make, factor):
    counts = make.photons(1, n=48 * factor)
    sky = make.sky
    grid = Observation(48, 0.1, 0.08625, sky * factor**2)
    for image in (make.disguise(counts)[0], counts):
        done = prepare(Raw(image), grid)
        assert done.standard
        assert (done.units, done.noise, done.centre) == (COUNTS, 1.0, (0.0, 0.0))
        assert np.array_equal(done.pixels, counts.reshape(48, factor, 48, factor).sum((1, 3)))


@pytest.mark.parametrize(("n", "scale"), [(64, 0.05), (131, 0.07), (512, 0.013), (70, 0.13), (36, 0.2)])
def test_resampling_conserves_flux_place_and_sky(n, scale):
    # Noise free: a mean image is its own expectation under a linear map.
    image = blob(n, scale) + 40 * (scale / 0.1) ** 2
    done = prepare(Raw(image), GRID, read_instrument(pixel_scale=scale, gain=1, sky=40 * (scale / 0.1) ** 2))
    flux, x, y = place(done.pixels)
    assert flux == pytest.approx(4e4, rel=0.02)
    assert (x, y) == (pytest.approx(0.3, abs=0.01), pytest.approx(-0.2, abs=0.01))
    assert np.nanmin(done.pixels) == pytest.approx(40, rel=1e-3)
    assert not done.standard


def test_noise_after_resampling_is_what_is_said():
    sky = np.random.default_rng(2).poisson(400, (90, 90))
    for scale in (0.07, 0.16, 0.2):
        done = prepare(Raw(sky), GRID, read_instrument(pixel_scale=scale, gain=1))
        inside = done.pixels[8:-8, 8:-8]
        assert inside.var() / inside.mean() == pytest.approx(done.noise, rel=0.2)
        assert done.noise < 0.8
        # Over patches beyond a pixel the photons' own noise is kept.
        patches = inside[:32, :32].reshape(4, 8, 4, 8).sum((1, 3))
        assert patches.var() / patches.mean() == pytest.approx(1, abs=0.75)
    assert prepare(Raw(sky), GRID, read_instrument(pixel_scale=0.05, gain=1)).noise == 1


def test_sizes_are_cut_and_padded_about_the_centre():
    for n in (40, 60, 61):
        done = prepare(Raw(exposed(n, 0.1)), GRID, read_instrument(pixel_scale=0.1))
        _, x, y = place(done.pixels)
        shift = done.centre
        assert (x - shift[0], y - shift[1]) == (pytest.approx(0.3, abs=0.03), pytest.approx(-0.2, abs=0.03))
        assert shift == ((0.05, 0.05) if n == 61 else (0, 0))
    padded = prepare(Raw(exposed(40, 0.1)), GRID, read_instrument(pixel_scale=0.1))
    assert np.isnan(padded.pixels[:4]).all()
    assert np.isfinite(padded.pixels[4:44, 4:44]).all()
    assert any("no data beyond 40 x 40 of 48 x 48 pixels" in note for note in padded.notes)
    oblong = prepare(Raw(exposed(60, 0.1)[:40]), GRID, read_instrument(pixel_scale=0.1))
    assert oblong.pixels.shape == (48, 48)
    assert any("of which not all hold data" in note for note in oblong.notes)


def test_the_header_s_word_counts_and_the_user_s_counts_more():
    counts = exposed(96, 0.05)
    header = Header(0.05, "ELECTRONS/S", 200.0, 7.0)
    done = prepare(Raw(counts / 200, header), GRID)
    assert done.units == COUNTS
    assert np.allclose(done.pixels, counts.reshape(48, 2, 48, 2).sum((1, 3)), rtol=1e-5)
    assert done.sky == pytest.approx(40, rel=0.03)
    given = prepare(Raw(counts / 200, Header(0.05, "e-/s", 9.0)), GRID, read_instrument(pixel_scale=0.1, exposure=200))
    assert given.pixels.sum() == pytest.approx(counts[24:72, 24:72].sum(), rel=1e-5)
    digital = prepare(Raw(counts / 2.5, Header(0.05, "ADU", None, 2.5)), GRID)
    assert np.allclose(digital.pixels, done.pixels, rtol=1e-5)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (Header(0.1, "nJy"), "the unit nJy is none of them"),
        (Header(0.1, "DN"), "in DN, whose gain the header does not tell"),
        (Header(0.1, "electrons/s"), "a rate in electrons/s without exposure"),
        (Header(0.1), "lie on no lattice"),
    ],
)
def test_without_photons_the_image_is_normalised_and_the_reason_kept(header, sentence):
    image = exposed(48, 0.1) * 1.7 + np.random.default_rng(1).normal(0, 0.3, (48, 48))
    done = prepare(Raw(image, header), GRID)
    assert (done.units, done.sky, done.standard) == (NORMALISED, 0.0, False)
    assert (done.pixels.min(), done.pixels.max()) == (0, 1)
    assert any(sentence in note for note in done.notes)
    assert prepare(Raw(image, header), GRID, read_instrument(gain=0.5, exposure=1)).units == COUNTS


def test_a_subtracted_sky_is_put_back():
    # Told, the level is the darkest tenth's mean, to half a count; measured, it is its variance, to a tenth of it.
    for known, within, bias in (({"sky": 40.0}, 0.6, 0.2), ({}, 6, 2)):
        off = []
        for seed in range(20):
            counts = exposed(48, 0.1, seed=seed).astype(float)
            done = prepare(Raw(counts - 40), GRID, read_instrument(gain=1, **known))
            assert done.sky_known == bool(known)
            assert any("raised by" in note for note in done.notes)
            off.append(done.pixels.mean() - counts.mean())
        assert np.std(off) < within
        assert abs(np.mean(off)) < bias
    # A rescaled image of another sky: its variance tells.
    faint = np.random.default_rng(3).poisson(blob(48, 0.1) + 200)
    done = prepare(Raw((faint - faint.min()) / np.ptp(faint)), GRID)
    assert not done.standard
    assert done.pixels.mean() == pytest.approx(faint.mean(), rel=0.15)
    assert any("by its variance" in note for note in done.notes)
    whole = prepare(Raw(faint), GRID)
    assert np.array_equal(whole.pixels, faint)
    assert whole.sky == pytest.approx(200, rel=0.03)
    assert not whole.standard


def test_whole_numbers_that_are_no_photons_are_not_taken_for_them():
    stretched = np.rint(255 * np.sqrt(blob(48, 0.1) / blob(48, 0.1).max())).astype(np.uint8)
    stretched = np.maximum(stretched, np.random.default_rng(0).integers(10, 14, stretched.shape).astype(np.uint8))
    done = prepare(Raw(stretched), GRID)
    assert done.units == NORMALISED
    assert any("is not its mean" in note for note in done.notes)


@pytest.mark.parametrize("scale", [0.05, 0.07, 0.1])
def test_a_pixel_of_the_grid_without_all_of_its_data_holds_none(scale):
    n = round(4.8 / scale) + 4
    whole, gone = exposed(n, scale).astype(float), exposed(n, scale).astype(float)
    gone[n // 2 + 3, n // 2 - 5] = np.inf
    gone[:1] = np.nan  # outside the field
    known = read_instrument(pixel_scale=scale, gain=1, sky=40 * (scale / 0.1) ** 2)
    full, done = prepare(Raw(whole), GRID, known), prepare(Raw(gone), GRID, known)
    hidden = np.isnan(done.pixels)
    assert 1 <= hidden.sum() <= 4
    y, x = (scale * (place - (n - 1) / 2) / 0.1 + 23.5 for place in (n // 2 + 3, n // 2 - 5))
    assert hidden[round(y), round(x)]
    # The sky is measured on other pixels: a level apart.
    assert np.ptp((done.pixels - full.pixels)[~hidden]) < 1e-3
    assert any(note == "1 pixels masked" for note in done.notes)
    assert np.isfinite(full.pixels).all()
    assert not any("masked" in note for note in full.notes)


def test_masked_pixels_change_neither_the_photons_nor_what_is_known_of_them(make):
    counts = make.photons(1, n=48).astype(float)
    grid = Observation(48, 0.1, 0.08625, make.sky)
    hidden = np.zeros((48, 48), bool)
    hidden[20:23, 30:33] = hidden[:6, :6] = True
    for image in (counts, (counts - counts.min()) / np.ptp(counts)):
        spoilt = np.where(hidden, np.nan, image)
        done = prepare(Raw(spoilt), grid)
        assert (done.units, done.standard) == (COUNTS, True)
        assert np.array_equal(done.pixels[~hidden], counts[~hidden])
        assert np.isnan(done.pixels[hidden]).all()


def lit(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (150, 150) of a ring whose halo lights two corners, and pixels to hide: scattered ones, and all that is bright."""
    x = np.arange(150) - 74.5
    ring = 300 * np.exp(-((np.hypot(x[:, None], x) - 30) ** 2) / 100)
    corners = 25 * (np.exp(-((x[:, None] + x + 150) ** 2) / 4000) + np.exp(-((x[:, None] + x - 150) ** 2) / 4000))
    rng = np.random.default_rng(seed)
    counts = rng.poisson(ring + corners + 10).astype(float)
    return counts, (rng.random(counts.shape) < 0.02) | (counts > np.quantile(counts, 0.98))


FINE = Observation(150, 0.05, 0.08625, 10.0)


@pytest.mark.parametrize("form", ["counts", "from 0 to 1", "12 bits", "half the pixels"])
def test_masks_and_lit_corners_and_a_lost_scale_at_once(form):
    """The counts are right up to the faintest pixel's, which is at most one off for the fit to mend."""
    for seed in range(8):
        counts, hidden = lit(seed)
        x = (counts - counts.min()) / np.ptp(counts)
        image = {"counts": counts, "12 bits": np.rint(x * 4095) / 4095}.get(form, x)
        grid = FINE.binned(2) if form == "half the pixels" else FINE
        factor = 150 // grid.n_pixels
        done = prepare(Raw(np.where(hidden, np.nan, image)), grid)
        gone = bin_pixels(hidden, factor) > 0
        assert (done.units, done.standard, done.rough) == (COUNTS, True, False)
        assert np.array_equal(np.isnan(done.pixels), gone)
        off = np.unique((done.pixels - bin_pixels(counts, factor))[~gone])
        assert len(off) == 1
        assert off[0] in ((0,) if form == "counts" else (-(factor**2), 0, factor**2))
        if done.lift is not None:
            assert np.array_equal(done.lift, np.where(gone, 0, factor**2))


def test_an_8_bit_picture_with_masked_pixels_keeps_its_photon_scale():
    for seed in range(8):
        counts, hidden = lit(seed)
        picture = np.rint((counts - counts.min()) / np.ptp(counts) * 255)
        whole, done = (prepare(Raw(image), FINE) for image in (picture, np.where(hidden, np.nan, picture)))
        assert (done.units, done.rough) == (COUNTS, True)
        assert np.array_equal(np.isnan(done.pixels), hidden)
        light = [(image.pixels - image.sky)[~hidden].sum() for image in (whole, done)]
        assert light[1] / light[0] == pytest.approx(1, abs=0.05)
        assert light[1] / (counts - 10)[~hidden].sum() == pytest.approx(1, abs=0.15)


def test_masked_pixels_change_nothing_of_what_a_psf_that_is_no_gaussian_leaves():
    counts, hidden = lit(0)
    r = np.hypot(*(np.indices((41, 41)) - 20.0))
    companion = np.exp(-0.5 * (r / 1.7) ** 2)
    companion += 0.2 * np.roll(companion, 6, 1)
    scale = {"pixel_scale": 0.05, "gain": 1, "sky": 10.0}
    flagged = []
    for psf in (companion, np.exp(-0.5 * (r / 1.7) ** 2)):
        for mask in (None, hidden, counts > 250):
            image = counts if mask is None else np.where(mask, np.nan, counts)
            done = prepare(Raw(image), FINE, read_instrument(psf=psf, **scale))
            flagged.append(any(raised.flag is Flag.NOT_ROUND for raised in done.flags))
    assert flagged == [True] * 3 + [False] * 3


def test_values_that_no_light_makes_are_masked():
    counts = exposed(48, 0.1).astype(float)
    counts[20:23, 25:28] = 0
    counts[30:33, 10:13] = 777
    done = prepare(Raw(counts), GRID)
    assert np.isnan(done.pixels).sum() == 18
    assert "18 pixels masked" in done.notes


def test_without_a_pixel_of_data_it_is_said():
    for where in (slice(None), slice(6, -6)):
        image = exposed(60, 0.1).astype(float)
        image[where, where] = np.nan
        with pytest.raises(D4LensError, match="no pixel within the field of view holds data"):
            prepare(Raw(image), GRID, read_instrument(pixel_scale=0.1))


def test_an_8_bit_picture_gets_its_photon_scale_from_the_sky_s_noise():
    grid = Observation(150, 0.05, 0.08625, 10.0)
    light = blob(150, 0.05, 1.2e6, 0.8)
    for seed in range(6):
        counts = np.random.default_rng(seed).poisson(light + 10)
        x = (counts - counts.min()) / np.ptp(counts)
        for picture in (np.rint(x * 255).astype(np.uint8), (np.rint(x * 255) / 255).astype(np.float32)):
            done = prepare(Raw(picture), grid)
            assert (done.units, done.rough) == (COUNTS, True)
            assert (done.pixels - done.sky).sum() / (counts - 10).sum() == pytest.approx(1, abs=0.15)
            # The rounding's own variance stands in the sky.
            assert done.sky == pytest.approx(10 + (np.ptp(counts) / 255) ** 2 / 12, rel=0.05)
            assert any("the values are a file format's levels" in note for note in done.notes)
        exact = prepare(Raw(np.rint(x * 4095) / 4095), grid)
        assert not exact.rough
        assert np.array_equal(exact.pixels, counts)


def test_an_8_bit_picture_of_a_smoothed_image_has_no_photon_scale():
    counts = np.random.default_rng(0).poisson(blob(150, 0.05, 1.2e6, 0.8) + 10).astype(float)
    smooth = sum(np.roll(counts, (i, j), (0, 1)) for i in range(3) for j in range(3))[3:-3, 3:-3]
    picture = np.rint((smooth - smooth.min()) / np.ptp(smooth) * 255) / 255
    done = prepare(Raw(picture), Observation(144, 0.05, 0.08625, 10.0))
    assert (done.units, done.rough) == (NORMALISED, False)
    assert any("their noise gives no photon scale" in note for note in done.notes)


def test_counts_whose_faintest_is_estimated_say_what_one_more_adds():
    counts = exposed(96, 0.05)
    scaled = (counts - counts.min()) / np.ptp(counts)
    assert (prepare(Raw(scaled), GRID).lift == 4).all()
    assert prepare(Raw(counts), GRID).lift is None
    padded = prepare(Raw(scaled[8:-8, 8:-8]), GRID, read_instrument(pixel_scale=0.05))
    assert (padded.lift[4:-4, 4:-4] == 4).all()
    assert (padded.lift[:4] == 0).all()


def test_what_does_not_fit_is_said():
    for image, known, sentence in (
        (exposed(50, 0.1), {}, "it is 50 pixels a side; this model takes 48 .* give --pixel-scale"),
        (exposed(96, 0.1)[:48], {}, "it is 96 x 48 pixels a side"),
        (exposed(48, 0.1)[:7], {}, "it is 48 x 7 pixels; at least 8"),
        (np.full((48, 48), 3.0), {}, "it is constant: every pixel is 3"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            prepare(Raw(image), GRID, read_instrument(**known))
