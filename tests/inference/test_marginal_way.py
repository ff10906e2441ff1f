"""The marginal fit as users reach it: `model=`, noise maps, and the networks that were trained on other maps."""

import math

import numpy as np
import pytest
from astropy.io import fits

from d4lens import fit, load_model, simulate
from d4lens.data.images import read_instrument
from d4lens.errors import D4LensError
from d4lens.inference.pipeline import default_weights

PSF = 0.08980  # arcsec, as pixels of 0.1 arcsec show one of 0.08625 that was sampled on pixels of 0.05
TOLD = {"gain": 1, "pixel_scale": 0.1, "psf": PSF}


@pytest.fixture(scope="module")
def elliptical():
    """Two smooth lenses of axis ratio 0.7 and Sérsic index 1, which the preset does not know."""
    return simulate("deeplense", 4, 9, {"lens_q": 0.7, "lens_phi": 0.5, "sersic_n": 1.0})


@pytest.fixture(scope="module")
def smooth(elliptical):
    seen = elliptical.images[[label == "no" for label in elliptical.labels]]
    return seen.reshape(-1, 75, 2, 75, 2).sum((2, 4))


def test_auto_takes_the_marginal_fit_for_another_world_and_the_network_of_its_maps(smooth):
    model = load_model()
    auto = model.predict(smooth, tta=False, **TOLD)
    assert set(auto.labels) <= {"no", ""}
    assert not any("network of other maps" in flag for flag in auto.flags)
    assert all(text.endswith("fitted: marginal") for text in auto.processing)
    assert (auto.chi2 < 1.1).all()
    alone = load_model(default_weights()).predict(smooth, tta=False, **TOLD)
    assert alone.labels == ["", ""]
    assert all("network of other maps: marginal, not specialist" in flag for flag in alone.flags)
    forced = model.predict(smooth, tta=False, **TOLD, force_label=True)
    assert forced.labels == ["no", "no"]
    specialist = model.predict(smooth, tta=False, **TOLD, model="specialist")
    assert all(text.endswith("fitted: specialist") for text in specialist.processing)
    assert (specialist.chi2 > 1.3).all()
    with pytest.raises(D4LensError, match="no model 'best' of the smooth lens; there are specialist, marginal, auto"):
        model.predict(smooth, model="best")


def test_the_marginal_fit_finds_lens_and_deviations(elliptical, smooth):
    answer = fit(smooth, model="marginal", **TOLD)
    truth = elliptical.to_pandas()[[label == "no" for label in elliptical.labels]]
    table = answer.to_pandas()
    assert table["converged"].all()
    e = 0.3 / 1.7
    for name, true in (
        ("theta_E", truth["theta_E"].to_numpy()),
        ("lens_e1", e * math.cos(1.0)),
        ("lens_e2", e * math.sin(1.0)),
    ):
        assert (np.abs(table[name] - true) < 5 * table[f"sigma_{name}"]).all(), name
    assert (answer.sigma > 0).all()


def noisy_image(smooth):
    """Values in units of their own under noise that is not the photons', some of them hidden."""
    random = np.random.default_rng(3)
    sigma = 9.0 + 3.0 * random.random((75, 75))
    values = (smooth[0] - 40.0 + sigma * random.normal(size=(75, 75))) / 700.0
    noise = np.hypot(sigma, np.sqrt(smooth[0])) / 700.0
    values[3:6, 60:70], noise[3:6, 60:70] = 1e3, np.inf
    return values, noise


def test_a_noise_map_gives_the_weights(smooth, tmp_path):
    values, noise = noisy_image(smooth)
    np.savez(tmp_path / "lens.npz", data=values, noise=noise)
    header = fits.Header({"EXTNAME": "RMS"})
    fits.HDUList([fits.PrimaryHDU(values), fits.ImageHDU(noise, header)]).writeto(tmp_path / "lens.fits")
    tables = [
        fit(image, pixel_scale=0.1, psf=PSF, band=band, noise=given).to_pandas()
        for image, band, given in (
            (values, None, noise),
            (tmp_path / "lens.npz", "data", str(tmp_path / "lens.npz")),
            (tmp_path / "lens.fits", "PRIMARY", f"{tmp_path / 'lens.fits'}:RMS"),
        )
    ]
    table = tables[0]
    assert 0.9 < table.loc[0, "chi2"] < 1.1
    assert table.loc[0, "converged"]
    assert table.loc[0, "flag"] == ""
    for said in ("noise by its map", "30 pixels masked", "fitted: marginal"):
        assert said in table.loc[0, "processing"]
    for other in tables[1:]:
        assert other["theta_E"].to_numpy() == pytest.approx(table["theta_E"].to_numpy(), abs=1e-6)


def test_a_bowl_below_the_sky_does_not_stop_the_images_beside_it(smooth):
    """What too large a sky leaves about a galaxy: its darkest tenth lies below 0 when the corners do not."""
    rows, columns = np.indices((75, 75)) - 37.0
    bowl = np.random.default_rng(3).normal(0.0, 0.05, (75, 75)) - 20.0 * (np.hypot(rows, columns) < 25)
    answer = load_model().predict([bowl, smooth[0]], tta=False, model="marginal", pixel_scale=0.1, psf=PSF)
    assert "no photon counts" in answer.flags[0]
    assert answer.labels[1] in ("no", "")
    assert answer.chi2[1] < 1.1


def test_resampled_images_of_the_preset_are_told_from_another_world_by_their_own_noise():
    """Neighbours share noise: chi2 of a true model is 0.62, so that what substructure leaves looked like nothing."""
    lenses = simulate("deeplense", 12, 9160, {"pixel_scale": 0.06})
    answer = load_model().predict(lenses.images, tta=False, pixel_scale=0.06)
    assert sum("fitted: specialist" in text for text in answer.processing) >= 10
    assert sum(label == true for label, true in zip(answer.labels, lenses.labels, strict=True)) >= 9


def test_noise_that_cannot_be_is_said(smooth, tmp_path):
    values, noise = noisy_image(smooth)
    hole = np.where(np.indices(noise.shape).sum(0) == 5, 0.0, noise)
    np.save(tmp_path / "hole.npy", hole)
    np.savez(tmp_path / "none.npz", sigma=noise, other=noise)
    for given, sentence in (
        (hole, "the noise map holds 6 pixels of noise that is not above 0, the first in row 0, column 5"),
        (-noise, "not above 0"),
        (str(tmp_path / "hole.npy"), r"hole.npy holds 6 pixels of noise"),
        (str(tmp_path / "none.npz"), "no band 'noise'; it holds sigma, other"),
        (str(tmp_path / "nowhere.npy"), "the noise map .*nowhere.npy is no file"),
        (np.full((75, 75), np.inf), "nowhere finite"),
        (3, "a noise map is a file, an array"),
        (noise > 0, "a noise map is a file, an array"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            read_instrument(noise=given)
    assert (
        "75 x 75 pixels and its noise map 10 x 10"
        in fit(values, pixel_scale=0.1, psf=PSF, noise=noise[:10, :10]).flags[0]
    )
    all_hidden = fit(values, pixel_scale=0.1, psf=PSF, noise=noise, mask=np.ones((75, 75))).flags[0]
    assert "no pixel within the field of view holds data" in all_hidden
    with pytest.raises(D4LensError, match="a noise map is for --model marginal or auto"):
        fit(values, pixel_scale=0.1, psf=PSF, noise=noise, model="specialist")
