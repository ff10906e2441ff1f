"""Faults that others met and reported, held here where they would be silent: docs/reliability.md, "Reports of others"."""

import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from d4lens import fit, predict, simulate
from d4lens.lensing import PoissonSolver, grid, point_mass_convergence

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
SKY = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "BUNIT": "electron"}
CDELT = {"CDELT1": -0.05 / 3600, "CDELT2": 0.05 / 3600}


@pytest.fixture(scope="module")
def smooth():
    """Counts of a lens without substructure, 150 pixels of 0.05 arcsec."""
    return simulate("deeplense", n=1, seed=1).images[0].reshape(150, 150)


def test_each_report_is_named_once_with_what_came_of_it():
    section = PAGE.read_text(encoding="utf-8").split("## Reports of others, tried here")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "#" in line[:80]]
    assert len(rows) >= 20
    assert all(len(row) == 4 and all(row) for row in rows)
    names = [row[0] for row in rows]
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", name) for name in names)
    assert len(set(names)) == len(names)


def test_an_offset_left_in_a_fits_header_is_taken_off_again(smooth, tmp_path):
    """astropy/astropy#4974: BZERO of the integers stayed with the floats, and every pixel read 32768 too much."""
    good, bad = tmp_path / "good.fits", tmp_path / "bad.fits"
    fits.writeto(good, smooth.astype(np.float32), fits.Header(SKY | CDELT))
    data = good.read_bytes()
    end = data.find(b"END".ljust(80))
    bad.write_bytes(data[:end] + b"BZERO   =              32768.0".ljust(80) + b"END".ljust(80) + data[end + 160 :])
    answer = predict([good, bad])
    assert answer.labels == ["no", "no"]
    assert answer.chi2[1] == pytest.approx(answer.chi2[0], abs=0.01)
    assert "raised by -3.277e+04 photons" in answer.processing[1]


def test_of_a_cd_matrix_and_a_cdelt_that_disagree_the_matrix_holds(smooth, tmp_path):
    """astropy/astropy#4592: where CD stands, CDELT means nothing, and headers carry both."""
    matrix = {"CD1_1": -0.05 / 3600, "CD2_2": 0.05 / 3600}
    fits.writeto(tmp_path / "one.fits", smooth, fits.Header(SKY | matrix | {"CDELT1": 1.0, "CDELT2": 1.0}))
    fits.writeto(tmp_path / "two.fits", smooth, fits.Header(SKY | matrix | {k: 0.8 * v for k, v in CDELT.items()}))
    answer = predict([tmp_path / "one.fits", tmp_path / "two.fits"])
    assert all("pixel scale 0.05 arcsec by the header" in text for text in answer.processing)
    assert answer.chi2 == pytest.approx(2 * [predict([smooth]).chi2[0]], abs=0.01)


def test_light_from_beyond_the_field_of_view_does_not_pass_for_substructure():
    """PyAutoLabs/PyAutoArray#274: the PSF brings it in over the edge."""
    wide = {"n_pixels": 250, "pixel_scale": 0.05, "theta_E": 2.6}
    images = simulate("deeplense", n=18, seed=12, overrides=wide)
    no = [image for image, label in zip(images.images, images.labels, strict=True) if label == "no"]
    answer = predict(no, pixel_scale=0.05)
    assert set(answer.labels) == {"no"}
    assert np.mean(answer.chi2) == pytest.approx(1, abs=0.02)


def test_an_image_upside_down_has_its_lens_upside_down(smooth):
    """PyAutoLabs/PyAutoLens#28: rows ran one way in the file and the other in the coordinates."""
    up, down = (fit([image], pixel_scale=0.05).to_pandas().iloc[0] for image in (smooth, smooth[::-1].copy()))
    for name, sign in (("theta_E", 1), ("gamma1", 1), ("gamma2", -1), ("source_x", 1), ("source_y", -1), ("e2", -1)):
        assert down[name] == pytest.approx(sign * up[name], abs=2e-3), name
    assert abs(up["source_y"]) > 0.1


def test_a_mass_that_misses_a_pixel_s_centre_by_rounding_does_not_blow_up():
    """lenstronomy/lenstronomy#114: 1e-16 arcsec from a pixel's centre the kernel was 1e32."""
    x, y = grid(75, 0.1)
    solver = PoissonSolver(75, 0.1)
    on, off = (solver(point_mass_convergence(x, y, 0.1, miss, 0.0, 0.2))[0] for miss in (0.0, 1e-16))
    assert abs(off - on).max() < 1e-6
