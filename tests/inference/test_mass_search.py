import json

import numpy as np
import pandas as pd
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS

from d4lens import detect
from d4lens.cli import main
from d4lens.errors import D4LensError
from d4lens.inference.mass_search import DETECT_COLUMNS, MSUN_COLUMNS
from d4lens.lensing.cosmology import theta_E_point
from d4lens.simulator import Truth, draw, preset, render
from d4lens.studies import physical_limit


@pytest.fixture(scope="module")
def lenses():
    """A lens with a mass of 1e10 Msun on its ring and one without, and their truth."""
    made_by = preset("deeplense")
    truth = physical_limit.one_subhalo(made_by, 19, [1e10, 1e3], [1.0, 1.0], [0.4, 1.0])
    return truth, render(truth, made_by).numpy()


def sky_image(counts, path, centre=(150.0, 2.0)):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], centre, [75.5, 75.5]
    wcs.wcs.cdelt = [-0.05 / 3600, 0.05 / 3600]
    header = wcs.to_header()
    header["BUNIT"] = "electron"
    fits.PrimaryHDU(counts.astype(np.float32), header).writeto(path)
    return wcs


def test_a_mass_is_a_row_and_a_smooth_lens_keeps_one(lenses, tmp_path, capsys):
    truth, images = lenses
    for name, image in zip(("mass", "smooth"), images, strict=True):
        np.save(tmp_path / f"{name}.npy", image)
    out = tmp_path / "found.csv"
    arguments = [str(tmp_path), "-o", str(out), "--z-lens", "0.5", "--z-source", "1"]
    assert main(["detect", *arguments]) == 0
    table = pd.read_csv(out, keep_default_na=True)
    assert set(table.columns) == {*DETECT_COLUMNS, *MSUN_COLUMNS}
    assert table["rank"].tolist() == [1, 0]
    found, smooth = table.iloc[0], table.iloc[1]
    mass = truth.subhalos.iloc[0]
    assert np.hypot(found.x - mass.x, found.y - mass.y) < 0.1
    assert found.mass == pytest.approx((mass.theta_E / truth.images["theta_E"].iloc[0]) ** 2, rel=0.25)
    assert theta_E_point(found.mass_msun, 0.5, 1.0) == pytest.approx(found.theta_E, rel=1e-4)
    assert found.p_false < 1e-6
    assert pd.isna(found.flag)
    assert 0.01 < smooth.p_false < 1
    assert np.isnan(smooth.x)


def test_an_image_that_fails_keeps_its_row_and_the_status_tells(lenses, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.full((150, 150), np.nan))
    np.save(tmp_path / "b.npy", lenses[1][1])
    assert (
        main(["detect", str(tmp_path), "-o", str(tmp_path / "found.json"), "--sensitivity", str(tmp_path / "m.fits")])
        == 1
    )
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [row["rank"] for row in rows] == [0, 0]
    assert rows[0]["flag"].startswith("failed: ")
    with fits.open(tmp_path / "m.fits") as maps:
        assert [maps[i].header["SOURCE"][-5:] for i in (1, 2)] == ["a.npy", "b.npy"]
        assert np.isnan(maps[1].data).all()
        assert np.isfinite(maps[2].data).any()


def test_no_lens_is_no_detection(capsys):
    noise = np.random.default_rng(0).poisson(10, (150, 150)).astype(float)
    row = detect(noise).to_pandas().iloc[0]
    assert row["rank"] == 0
    assert row["flag"] or row["p_false"] > 0.01


@pytest.fixture(scope="module")
def foreign():
    """Smooth lenses that are not the preset's: by axis ratio, by Sérsic index, by clumps in the source."""
    shapes = [{"lens_q": 0.8, "lens_phi": 0.5}, {"sersic_n": 1.0}]
    images = [
        render(draw(kind, 5, range(1), "none"), kind)[0].numpy() for kind in (preset("deeplense", s) for s in shapes)
    ]
    kind = preset("deeplense")
    truth = draw(kind, 8, range(1), "none")
    mean = render(truth, kind, noise=False)[0].double()
    for x, y in ((0.1, 0.0), (-0.15, 0.1), (0.0, -0.2)):
        knot = {"sersic_R_e": 0.1, "sersic_amplitude": 200.0, "sersic_n": 1.0, "source_q": 1.0}
        place = {"source_x": truth.images["source_x"] + x, "source_y": truth.images["source_y"] + y}
        mean += render(Truth(truth.images.assign(**knot, **place), truth.subhalos), kind, noise=False)[0] - 10.0
    return [*images, torch.poisson(mean, generator=torch.Generator().manual_seed(1)).numpy()]


def test_a_smooth_lens_of_another_kind_has_no_candidate(foreign):
    rows = detect(np.stack(foreign), model="specialist").to_pandas()
    assert rows["rank"].tolist() == [0, 0, 0]
    assert rows["p_false"].isna().all()
    assert rows["flag"].str.contains("not converged|not the preset's lens|more than these masses").all()
    kind = preset("deeplense", {"lens_q": 0.8, "lens_phi": 0.5})
    smooth = render(draw(kind, 50, range(4), "none"), kind).numpy()
    rows = detect(np.concatenate([foreign[0][None], smooth])).to_pandas()
    # The second answer of p_false 0.01 in five has a chance of one in a thousand.
    assert (rows["rank"] > 0).sum() <= 1
    assert (rows["p_false"] > 0.001).all()
    assert rows["processing"].str.contains("fitted: marginal").all()


def test_what_is_withheld_is_listed_if_forced(foreign):
    forced = detect(foreign[0], model="specialist", force=True)
    assert len(forced.candidates) > 0
    assert forced.to_pandas()["flag"].str.contains("not the preset's lens").all()


def test_a_map_of_an_image_on_other_pixels_is_on_those(lenses, tmp_path):
    counts = lenses[1][1]
    place = tmp_path / "map.fits"
    answer = detect(counts[25:125, 25:125], pixel_scale=0.06, gain=1.0, sensitivity=place).to_pandas()
    with fits.open(place) as hdus:
        assert hdus[0].data.shape == (100, 100)
        assert hdus[0].header["PIXSCALE"] == 0.06
    assert answer["processing"].str.contains("fitted: marginal").all()


def test_a_map_has_the_images_place_on_the_sky(lenses, tmp_path):
    wcs = sky_image(lenses[1][1], tmp_path / "lens.fits")
    place = tmp_path / "map.fits"
    answer = detect(tmp_path / "lens.fits", sensitivity=place, sigma=3, z_lens=0.5, z_source="1")
    assert len(answer.candidates) == 0
    with fits.open(place) as hdus:
        header, data = hdus[0].header, hdus[0].data
    assert header["SIGMA"] == 3
    assert header["BUNIT"] == "solMass"
    assert data.shape == (150, 150)
    own = WCS(header)
    for pixel in ((0, 0), (149, 20), (75, 75)):
        assert own.pixel_to_world(*pixel).separation(wcs.pixel_to_world(*pixel)).arcsec < 1e-3


def test_what_is_out_of_range_is_refused_in_one_sentence(lenses, tmp_path):
    image = lenses[1][1]
    for options, sentence in (
        ({"profile": "nfw"}, "point or sis"),
        ({"p_false": 0}, "p_false must lie between 0 and 1"),
        ({"z_lens": 0.5}, "both redshifts"),
        ({"z_lens": 1.0, "z_source": 0.5}, "z_source - z_lens"),
        ({"sigma": -1}, "sigma must be above 0"),
        ({"sensitivity": tmp_path / "map.png"}, "FITS"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            detect(image, **options)


def test_the_image_alone_decides(lenses):
    image = lenses[1][0]
    alone, among = detect(image).to_pandas(), detect(torch.from_numpy(lenses[1])).to_pandas()
    values = ["x", "y", "mass", "p_false"]
    assert np.array_equal(alone[values].to_numpy(), among[values].to_numpy()[:1])
