import math
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from d4lens.data.images import Header, Psf, Raw, prepare, read_instrument
from d4lens.data.images.psf import _fit, with_variance
from d4lens.errors import D4LensError
from d4lens.observation import Observation

GRID = Observation(48, 0.1, 0.08625, 40.0)


def gaussian(sigma: float, n: int = 31, off: float = 0.0, q: float = 1.0) -> np.ndarray:
    x = np.arange(n) - (n - 1) / 2 - off
    return 5e3 * np.exp(-0.5 * ((x / (q * sigma)) ** 2 + (x[:, None] / sigma) ** 2)) + 12


def moffat(beta: float, sigma: float, n: int = 41) -> np.ndarray:
    """Of the same full width at half maximum as a Gaussian of `sigma` pixels."""
    x = np.arange(n) - (n - 1) / 2
    core = 1.1774 * sigma / np.sqrt(2 ** (1 / beta) - 1)
    return (1 + (x**2 + x[:, None] ** 2) / core**2) ** -beta


@pytest.mark.parametrize("sigma", [0.8, 1.7, 4.0])
def test_the_width_of_a_gaussian_is_found_wherever_it_lies(sigma):
    noise = np.random.default_rng(0).normal(0, 3, (31, 31))
    found, *_, misfit, widths = _fit(gaussian(sigma, off=0.3) + noise, "the PSF")
    assert found == pytest.approx(sigma, rel=0.01)
    assert misfit < 0.1
    assert sum(share * width for share, width in widths) == pytest.approx(sigma, rel=0.02)


def test_what_is_not_round_is_said(tmp_path):
    np.save(tmp_path / "oval.npy", gaussian(2.0, q=2.0))
    assert "oval.npy is not round" in read_instrument(psf=tmp_path / "oval.npy").psf.note
    np.save(tmp_path / "good.npy", gaussian(2.0))
    assert read_instrument(psf=str(tmp_path / "good.npy")).psf == Psf(pytest.approx(2.0, rel=1e-3), True, "")


@pytest.mark.parametrize("beta", [2.5, 3.5, 4.7, 8.0])
def test_wings_are_gaussians_of_their_own(beta):
    psf = read_instrument(psf=moffat(beta, 1.7)).psf
    assert psf.note == ""
    assert len(psf.shape) > 1
    assert sum(share for share, _ in psf.shape) == pytest.approx(1)
    assert any("within a Gaussian of" in said for said in psf.how)
    # Of the light no more than a hundredth lies elsewhere, where the single Gaussian misses a tenth of the widest wings.
    assert np.abs(psf.image - psf.model).sum() / 2 < 0.01


def test_a_psf_is_blurred_as_its_image_is():
    shape = ((0.75, 1.0), (0.25, 3.0))
    sigma, wider = with_variance(0.1, shape, 0.03**2)
    assert sigma == pytest.approx(math.hypot(0.1, 0.03))
    assert [(share, ratio * sigma) for share, ratio in wider] == [
        (0.75, pytest.approx(math.hypot(0.1, 0.03))),
        (0.25, pytest.approx(math.hypot(0.3, 0.03))),
    ]
    assert with_variance(0.1, ((1.0, 1.0),), -0.02, least=0.05) == (0.05, ((1.0, 1.0),))


def ring(peak: float) -> np.ndarray:
    """Photons (96, 96) of 0.05 arcsec: an arc of 0.2 arcsec width and `peak` photons over a sky of 10."""
    x = (np.arange(96) - 47.5) * 0.05
    r = np.hypot(x, x[:, None])
    light = peak * np.exp(-0.5 * ((r - 1.2) / 0.1) ** 2) * (1 + x / 2.4)
    return np.random.default_rng(0).poisson(light + 10).astype(float)


def flags(psf: object, image: np.ndarray, **known: float) -> tuple[str, ...]:
    return tuple(map(str, prepare(Raw(image), GRID, read_instrument(pixel_scale=0.05, psf=psf, **known)).flags))


@pytest.mark.parametrize("beta", [2.5, 3.5, 4.7])
def test_wings_are_modelled_and_not_flagged(beta):
    noise = np.random.default_rng(1).normal(0, 1e-4, (41, 41))
    assert flags(moffat(beta, 1.7) + noise, ring(400), gain=1) == ()
    assert flags(0.085, ring(400), gain=1) == ()


@pytest.mark.parametrize("psf", [gaussian(1.5, q=1.5), gaussian(1.7) + 0.2 * np.roll(gaussian(1.7), 6, 1)])
def test_what_is_not_round_and_would_pass_for_structure_is_flagged(psf):
    assert flags(psf, ring(400), gain=1) == ("PSF is not round",)
    # In an image too faint to tell there is nothing to beware of.
    assert flags(psf, ring(1), gain=1) == ()
    # Without photon counts the noise is guessed, and with it what matters.
    rough = ring(400) * 1.7 + np.random.default_rng(1).normal(0, 0.3, (96, 96))
    assert "PSF is not round" in flags(psf, rough)


@pytest.mark.parametrize(("noise", "peak"), [(1e-4, 4000), (1e-3, 400)])
@pytest.mark.parametrize("n", [31, 101, 200])
def test_a_gaussian_with_noise_is_not_flagged(n, noise, peak):
    image = gaussian(1.7, n) + 5e3 * np.random.default_rng(2).normal(0, noise, (n, n))
    psf = read_instrument(psf=image).psf
    assert psf.note == ""
    assert flags(image, ring(peak), gain=1) == ()


def test_the_residual_is_that_of_the_convolutions():
    """Against the direct sums, where image and PSF lie on the grid's own pixels."""
    image = gaussian(1.5, 21, q=1.4) - 12
    psf = read_instrument(psf=image).psf
    point = np.zeros((41, 41))
    point[20, 20] = 1000
    true = np.zeros((41, 41))
    true[10:31, 10:31] = 1000 * psf.image
    model = np.zeros((41, 41))
    model[10:31, 10:31] = 1000 * psf.model
    brightness = (true * model).sum() / (model**2).sum()
    found = psf.residual(point, np.full((41, 41), 4.0), 0.1, 0.1)
    assert found == pytest.approx(np.abs(true - brightness * model).max() / 2, rel=1e-3)
    # On pixels twice as wide, the same light: fewer pixels, each of more photons.
    assert 0 < psf.residual(point, np.full((41, 41), 4.0), 0.05, 0.1) != pytest.approx(found, rel=0.01)


def test_a_width_is_arcsec_where_a_number_or_a_header_says_so(tmp_path):
    assert read_instrument(psf="0.07").psf.arcsec(0.05) == 0.07
    assert Psf(2.0, in_pixels=True).arcsec(0.05) == 0.1
    header = fits.Header({"CTYPE1": "RA---TAN", "CDELT1": -0.02 / 3600, "CDELT2": 0.02 / 3600})
    fits.writeto(tmp_path / "psf.fits", gaussian(2.0), header)
    assert read_instrument(psf=tmp_path / "psf.fits").psf.arcsec(0.05) == pytest.approx(0.04, rel=1e-3)


def stpsf(path: Path, scale: float = 0.0312, finer: int = 4) -> Path:
    """A file laid out as STPSF writes it, each PSF of another width."""
    hdus = []
    for name, sigma, over in (
        ("OVERSAMP", 4.0, finer),
        ("DET_SAMP", 1.2, 1),
        ("OVERDIST", 4.4, finer),
        ("DET_DIST", 1.5, 1),
    ):
        hdu = (fits.ImageHDU if hdus else fits.PrimaryHDU)(gaussian(sigma, 41) - 12)
        hdu.header.update({"EXTNAME": name, "PIXELSCL": scale / over, "OVERSAMP": over, "DET_SAMP": over})
        hdu.header.comments["PIXELSCL"] = "[arcsec/pixel] Pixel scale"
        hdus.append(hdu)
    fits.HDUList(hdus).writeto(path)
    return path


def test_of_stpsf_s_four_extensions_the_detector_s_is_taken_or_the_one_that_is_named(tmp_path):
    path = stpsf(tmp_path / "a:b psf.fits")
    psf = read_instrument(psf=path).psf
    assert psf.arcsec(0.05) == pytest.approx(1.5 * 0.0312, rel=1e-3)
    assert psf.how == ("PSF of a:b psf.fits:DET_DIST", "PSF pixels of 0.0312 arcsec by its header")
    for name in ("DET_SAMP", "1"):
        assert read_instrument(psf=f"{path}:{name}").psf.arcsec(1) == pytest.approx(1.2 * 0.0312, rel=1e-3)
    # Calculated on finer pixels, the PSF has not been through the detector's.
    fine = read_instrument(psf=f"{path}:OVERDIST").psf
    assert fine.arcsec(1) == pytest.approx(0.0312 * np.hypot(4.4 / 4, np.sqrt((1 - 1 / 16) / 12)), rel=1e-3)
    assert "the detector's pixel added" in fine.how[1]
    with pytest.raises(
        D4LensError, match=r"psf.fits has no band 'SCI'; it holds OVERSAMP, DET_SAMP, OVERDIST, DET_DIST"
    ):
        read_instrument(psf=f"{path}:SCI")
    done = prepare(Raw(ring(400), Header(0.05)), GRID, read_instrument(psf=path, gain=1))
    assert "PSF of a:b psf.fits:DET_DIST" in done.notes


def test_an_oversampled_psf_without_a_scale_is_on_the_image_s_pixels(tmp_path):
    fits.writeto(tmp_path / "fine.fits", gaussian(4.0, 41), fits.Header({"OVERSAMP": 4}))
    psf = read_instrument(psf=tmp_path / "fine.fits").psf
    assert psf.arcsec(0.05) == pytest.approx(0.05 * np.hypot(1, np.sqrt((1 - 1 / 16) / 12)), rel=1e-3)
    assert "PSF taken to be on the image's pixels, 4 times as fine" in psf.how


def test_a_psf_whose_header_disagrees_with_itself_is_flagged(tmp_path):
    cards = fits.Header({"PIXELSCL": 0.05, "CUNIT1": "arcsec", "CDELT1": 0.04, "CDELT2": 0.04})
    fits.writeto(tmp_path / "psf.fits", gaussian(2.0), cards)
    assert flags(tmp_path / "psf.fits", ring(400), gain=1) == (
        "PSF's header disagrees on the pixel scale: CDELT1 0.04, PIXELSCL 0.05",
    )


def test_several_images_ask_for_one_by_name(tmp_path):
    np.savez(tmp_path / "psfs.npz", g=gaussian(1.5), r=gaussian(2.5))
    assert read_instrument(psf=f"{tmp_path}/psfs.npz:r").psf.sigma == pytest.approx(2.5, rel=1e-3)
    with pytest.raises(
        D4LensError, match=r"holds 2 images \(g, r\); choose one by --psf .*psfs.npz:NAME or its number$"
    ):
        read_instrument(psf=tmp_path / "psfs.npz")


def test_arrays_are_taken_and_recentred():
    psf = read_instrument(psf=gaussian(1.7, 30)).psf
    assert psf == Psf(pytest.approx(1.7, rel=1e-3), True)
    even = "PSF image of 30 x 30 pixels, of even size, recentred on its light"
    assert psf.how == (even, "PSF taken to be on the image's pixels")
    aside = read_instrument(psf=gaussian(1.7, 31, off=2.0)[None].astype(">f4")).psf
    assert aside.sigma == pytest.approx(1.7, rel=1e-3)
    assert aside.how[0] == "PSF recentred from (2.00, 2.00) pixels off its image's middle"
    assert flags(gaussian(1.7, 30), ring(4000), gain=1) == flags(gaussian(1.7, 31, off=2.3), ring(4000), gain=1) == ()
    assert read_instrument(psf=np.float32(0.07)).psf == Psf(pytest.approx(0.07))
    assert read_instrument(psf=gaussian(1.7).tolist()).psf == Psf(pytest.approx(1.7, rel=1e-3), True)


def test_what_is_no_psf_is_refused(tmp_path):
    np.save(tmp_path / "flat.npy", np.ones((9, 9)))
    np.save(tmp_path / "tiny.npy", np.eye(3))
    fits.writeto(tmp_path / "odd.fits", gaussian(2.0), fits.Header({"PIXSCALE": "small"}))
    hole, sombrero = gaussian(1.7), gaussian(1.7) - gaussian(3.0) * (1.7 / 3.0) ** 2
    hole[15, 15] = np.nan
    for psf, sentence in (
        ("nowhere.fits", "nowhere.fits is neither a number of arcsec nor a file"),
        ("x" * 5000, "is neither a number of arcsec nor a file"),
        (tmp_path, "is neither a number of arcsec nor a file"),
        (tmp_path / "flat.npy", r"flat.npy is no PSF: nothing in it stands above"),
        (tmp_path / "tiny.npy", r"tiny.npy is no PSF: it must be .* not one of shape \(3, 3\)"),
        (tmp_path / "odd.fits", "odd.fits: its header has PIXSCALE = 'small', which is no pixel scale"),
        (hole, "the PSF is no PSF: it must be .* not one with 1 pixels that are NaN or infinite"),
        (-gaussian(1.7), "is no PSF: nothing in it stands above its rim"),
        (sombrero, "is no PSF: it is negative, down to -0"),
        (np.zeros((9, 9)), "is no PSF: nothing in it"),
        (np.ones((2, 9, 9)), r"not one of shape \(2, 9, 9\)"),
        (np.full((9, 9), "x"), "the PSF is of type ndarray; give its sigma in arcsec, an image"),
        ([[1, 2], [3]], "the PSF is of type list"),
        (object(), "the PSF is of type object"),
        (True, "the PSF is of type bool"),
    ):
        with pytest.raises(D4LensError, match=sentence) as caught:
            read_instrument(psf=psf)
        assert "\n" not in str(caught.value)
