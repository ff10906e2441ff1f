import numpy as np
import pytest
from astropy.io import fits

from d4lens.data.images import Psf, instrument, measure_psf
from d4lens.errors import D4LensError


def gaussian(sigma: float, n: int = 31, off: float = 0.0, q: float = 1.0) -> np.ndarray:
    x = np.arange(n) - (n - 1) / 2 - off
    return 5e3 * np.exp(-0.5 * ((x / (q * sigma)) ** 2 + (x[:, None] / sigma) ** 2)) + 12


@pytest.mark.parametrize("sigma", [0.8, 1.7, 4.0])
def test_the_width_of_a_gaussian_is_found_wherever_it_lies(sigma):
    noise = np.random.default_rng(0).normal(0, 3, (31, 31))
    found, misfit = measure_psf(gaussian(sigma, off=0.3) + noise)
    assert found == pytest.approx(sigma, rel=0.01)
    assert misfit < 0.1


def test_what_is_no_gaussian_is_said(tmp_path):
    x = np.arange(41) - 20.0
    moffat = (1 + (x**2 + x[:, None] ** 2) / 4) ** -1.5
    for name, image in (("moffat", moffat), ("oval", gaussian(2.0, q=2.0))):
        np.save(tmp_path / f"{name}.npy", image)
        assert f"{name}.npy is no Gaussian" in instrument(psf=tmp_path / f"{name}.npy").psf.note
    np.save(tmp_path / "good.npy", gaussian(2.0))
    assert instrument(psf=str(tmp_path / "good.npy")).psf == Psf(pytest.approx(2.0, rel=1e-3), True, "")


def test_a_width_is_arcsec_where_a_number_or_a_header_says_so(tmp_path):
    assert instrument(psf="0.07").psf.arcsec(0.05) == 0.07
    assert Psf(2.0, in_pixels=True).arcsec(0.05) == 0.1
    header = fits.Header({"CTYPE1": "RA---TAN", "CDELT1": -0.02 / 3600, "CDELT2": 0.02 / 3600})
    fits.writeto(tmp_path / "psf.fits", gaussian(2.0), header)
    assert instrument(psf=tmp_path / "psf.fits").psf.arcsec(0.05) == pytest.approx(0.04, rel=1e-3)


def test_what_cannot_be_is_refused(tmp_path):
    np.save(tmp_path / "flat.npy", np.ones((9, 9)))
    np.save(tmp_path / "tiny.npy", np.eye(3))
    for known, sentence in (
        ({"pixel_scale": 0.0}, "the pixel scale must be above 0"),
        ({"psf": "-1"}, "the PSF's sigma must be above 0"),
        ({"psf": "nan"}, "the PSF's sigma must be above 0 and finite, not nan"),
        ({"gain": -2.0}, "the gain must"),
        ({"exposure": float("inf")}, "the exposure must"),
        ({"sky": 0.0}, "the sky must"),
        ({"psf": "nowhere.fits"}, "nowhere.fits is neither a number of arcsec nor a file"),
        ({"psf": tmp_path / "flat.npy"}, r"flat.npy is no PSF: nothing in it stands above"),
        ({"psf": tmp_path / "tiny.npy"}, r"tiny.npy is no PSF: it must be"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            instrument(**known)
