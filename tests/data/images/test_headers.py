"""Headers as telescopes' pipelines write them, and as they arrive after other people's scripts."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from d4lens.data.images import Header, Prepared, Raw, header_of, headers, prepare, read_instrument
from d4lens.data.images.headers import KEYWORDS, Unit, counting_unit
from d4lens.errors import D4LensError
from d4lens.observation import Observation

GRID = Observation(48, 0.1, 0.08625, 40.0)
DEG = 0.06 / 3600
TAN = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.1, "CRVAL2": 2.2, "CRPIX1": 48.5, "CRPIX2": 48.5}


def cards(**values: object) -> fits.Header:
    return fits.Header({"NAXIS": 2, "NAXIS1": 96, "NAXIS2": 96, **values})


def words(done: Prepared) -> tuple[str, ...]:
    """The flags of a prepared image."""
    return tuple(map(str, done.flags))


def hdu(values: dict[str, object], shape: tuple[int, int] | None = (96, 96), primary: bool = False) -> fits.ImageHDU:
    made = (fits.PrimaryHDU if primary else fits.ImageHDU)(np.ones(shape, np.float32) if shape else None)
    made.header.update(values)
    return made


@pytest.mark.parametrize(
    "values",
    [
        {"CDELT1": -DEG, "CDELT2": DEG},  # neither CTYPE nor CUNIT
        {"CDELT1": -DEG},  # one axis for both
        {"CDELT1": f"{-DEG}", "CDELT2": f"{DEG:.9e}".replace("e", "D")},  # as text
        {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR", "CDELT1": -DEG, "CDELT2": DEG},
        {
            "CTYPE1": "LINEAR",
            "CTYPE2": "LINEAR",
            "CUNIT1": "arcsec",
            "CUNIT2": "arcsec",
            "CDELT1": 0.06,
            "CDELT2": 0.06,
        },
        {"CUNIT1": "arcsec", "CDELT1": 0.06, "CDELT2": 0.06},
        {**TAN, "CUNIT1": "arcsec", "CDELT1": -0.06, "CDELT2": DEG},  # degrees where nothing is said
        {**TAN, "CUNIT1": "arcsec", "CUNIT2": "deg", "CDELT1": -0.06, "CDELT2": DEG},
        {"CUNIT1": "mas", "CUNIT2": "rad", "CDELT1": 60.0, "CDELT2": 0.06 / 206264.80624709636},
        {**TAN, "PC1_1": -DEG, "PC2_2": DEG},
        {**TAN, "PC1_1": 0.6, "PC1_2": -0.8, "PC2_1": 0.8, "PC2_2": 0.6, "CDELT1": -DEG, "CDELT2": DEG},
        {**TAN, "CD1_1": -0.6 * DEG, "CD1_2": 0.8 * DEG, "CD2_1": 0.8 * DEG, "CD2_2": 0.6 * DEG},
        {**TAN, "CD1_1": -DEG, "CD2_2": DEG, "CDELT1": 1.0, "CDELT2": 1.0},  # CDELT is a placeholder
        {**TAN, "CDELT1": -DEG, "CDELT2": DEG, "CROTA2": 33.0},
        {
            **TAN,
            "CTYPE1": "DEC--TAN",
            "CTYPE2": "RA---TAN",
            "CRVAL1": 2.2,
            "CRVAL2": 150.1,
            "CDELT1": DEG,
            "CDELT2": -DEG,
        },
        {**TAN, "CRVAL2": 90.0, "CDELT1": -DEG, "CDELT2": DEG},  # at the pole
        {**TAN, "CRVAL1": 0.0, "CDELT1": -DEG, "CDELT2": DEG},  # across right ascension 0
        {"CTYPE1": "RA", "CTYPE2": "DEC", "CDELT1": -DEG, "CDELT2": DEG},
        {"CTYPE1": "RA---TAN", "CDELT1": -DEG, "CDELT2": DEG},
        {"PIXSCALE": 0.06},
        {"PIXSCALE": "0.06"},
        {"PIXSCALE": "0.06 arcsec/pix"},
        {"PIXSCALE": "0.06 arcsec per pixel"},
        {"PIXSCALE": '0.06"/pixel'},
        {"PIXSCALE": "60 mas / px"},
        {"PIXSCALE": "6.0E-2 asec/pix"},
        {"SECPIX": 0.06},
        {"SECPIX1": 0.06, "SECPIX2": 0.06},
        {"PIXSCAL1": 0.06, "PIXSCAL2": 0.06},
        {"HIERARCH ESO INS PIXSCALE": 0.06},
        {"CTYPE1": "LINEAR", "CUNIT1": "pixel", "CD1_1": 1.0, "CD2_2": 1.0, "PIXSCALE": 0.06},
        {"CDELT1": 1.0, "CDELT2": 1.0, "PIXSCALE": 0.06},
        {**TAN, "PIXSCALE": 0.06},  # a WCS without any scale
        {**TAN, "CDELT1": 1.0, "CDELT2": 1.0, "CUNIT1": "deg", "CUNIT2": "deg", "PIXSCALE": 0.06},
        {**TAN, "PC1_1": 0.6, "PC1_2": -0.8, "PC2_1": 0.8, "PC2_2": 0.6, "PIXSCALE": 0.06},  # turned, not scaled
    ],
)
def test_a_pixel_scale_that_is_there_is_understood(values):
    header = header_of(cards(**values))
    assert header.pixel_scale == pytest.approx(0.06, rel=1e-5)
    assert header.disputed("pixel scale") == ""
    assert header_of({"NAXIS": 2, "NAXIS1": 96, "NAXIS2": 96, **values}).pixel_scale == (
        None if any("HIERARCH" in key for key in values) else header.pixel_scale
    )


@pytest.mark.parametrize("unit", ["deg", "degree", "degrees", "DEG", "Deg", "deg.", "degree  "])
def test_every_spelling_of_degrees(unit):
    assert header_of(cards(CUNIT1=unit, CDELT1=-DEG, CDELT2=DEG)).pixel_scale == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("unit", "step"),
    [
        *((unit, 0.06) for unit in ("arcsec", "ARCSEC", "arcsecond", "arcseconds", "Arcsecs", "asec", "arc sec", '"')),
        *((unit, 60.0) for unit in ("mas", "MAS", "milliarcsec", "milliarcseconds")),
        *((unit, 0.001) for unit in ("arcmin", "arcminutes", "ARCMIN")),
        *((unit, 0.06 / 206264.80624709636) for unit in ("rad", "RAD", "radian", "radians")),
    ],
)
def test_every_spelling_of_an_angle(unit, step):
    for types in ({}, TAN):
        assert header_of(
            cards(**types, CUNIT1=unit, CUNIT2=unit, CDELT1=-step, CDELT2=step)
        ).pixel_scale == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"CDELT1": 0.06, "CDELT2": 0.06}, "CDELT1 = 0.06 without CTYPE and CUNIT"),
        ({"CTYPE1": "LINEAR", "CDELT1": 0.06, "CDELT2": 0.06}, "CDELT1 = 0.06 of CTYPE1 'LINEAR'"),
        ({"CTYPE1": "WAVE", "CDELT1": 1e-5, "CDELT2": 1e-5}, "CDELT1 = 1e-05 of CTYPE1 'WAVE'"),
        ({"CUNIT1": "furlong", "CDELT1": 0.06, "CDELT2": 0.06}, "CDELT1 = 0.06 in CUNIT 'furlong'"),
        ({**TAN, "CUNIT1": "mm", "CUNIT2": "mm", "CD1_1": 0.015, "CD2_2": 0.015}, "CD1_1 = 0.015 in CUNIT 'mm'"),
        ({"CDELT1": "narrow"}, "CDELT1 = 'narrow', which is no number"),
        ({"PIXSCALE": "fine"}, "PIXSCALE = 'fine'"),
        ({"PIXSCALE": "15 micron"}, "PIXSCALE = '15 micron'"),
        ({"PIXSCALE": 1.6e-5}, "PIXSCALE = 1.6e-05"),
        ({**TAN, "CDELT1": -DEG, "CDELT2": 1.02 * DEG}, "its pixels are 0.06 x 0.0612 arcsec;"),
        ({**TAN, "CDELT1": -DEG, "CDELT2": 2 * DEG, "PIXSCALE": 0.06}, "its pixels are 0.06 x 0.12 arcsec;"),
        ({**TAN, "CD1_1": -DEG, "CD1_2": 0.05 * DEG, "CD2_2": DEG}, "its pixels are 0.06 x 0.06007 arcsec, skewed;"),
        ({**TAN, "CD1_1": -DEG}, "in a WCS whose pixels have no area"),
    ],
)
def test_one_that_is_not_understood_is_refused_with_what_stands_there(values, shown):
    header = header_of(cards(**values))
    assert header.pixel_scale is None
    with pytest.raises(D4LensError) as caught:
        prepare(Raw(np.eye(96), header), GRID)
    assert shown in str(caught.value)
    # The user's word counts, and the header's is kept.
    done = prepare(Raw(exposed(), header), GRID, read_instrument(pixel_scale=0.05))
    assert shown in "; ".join(done.notes)
    assert "pixel scale guessed" not in words(done)


@pytest.mark.parametrize(
    "values", [{}, {"CDELT1": 1.0, "CDELT2": 1.0}, {"CUNIT1": "PIXEL", "CD1_1": 1.0, "CD2_2": 1.0}, TAN]
)
def test_a_guess_is_flagged_unless_the_image_is_as_published(values):
    header = header_of(cards(**values, BUNIT="electron"))
    assert words(prepare(Raw(exposed(), header), GRID)) == ("pixel scale guessed",)
    assert prepare(Raw(exposed()), GRID).flags == ()  # photon counts over the preset's sky, on its pixels
    assert words(prepare(Raw(exposed(sky=100)), GRID)) == ("pixel scale guessed",)
    assert prepare(Raw(exposed()), GRID, read_instrument(pixel_scale=0.05)).flags == ()


def exposed(sky: float = 10.0) -> np.ndarray:
    """Photons (96, 96) of 0.05 arcsec."""
    x = (np.arange(96) - 47.5) * 0.05
    light = 400 * np.exp(-0.5 * ((x - 0.3) ** 2 + x[:, None] ** 2) / 0.4**2)
    return np.random.default_rng(0).poisson(light + sky)


def test_a_scale_stated_twice_and_differently_is_flagged():
    header = header_of(cards(**TAN, CD1_1=-DEG, CD2_2=DEG, PIXSCALE=0.05))
    assert header.pixel_scale == pytest.approx(0.06)
    done = prepare(Raw(exposed(), header), GRID, read_instrument(gain=1))
    assert words(done) == ("header disagrees on the pixel scale: the CD matrix 0.06, PIXSCALE 0.05",)
    assert done.notes[0] == "pixel scale 0.06 arcsec by the header of the CD matrix before PIXSCALE 0.05"
    assert prepare(Raw(exposed(), header), GRID, read_instrument(gain=1, pixel_scale=0.06)).flags == ()
    for other in ({"PIXSCALE": 0.0603}, {"CDELT1": DEG, "CDELT2": DEG}, {"SECPIX1": "0.06"}):
        assert header_of(cards(**TAN, CD1_1=-DEG, CD2_2=DEG, **other)).disputed("pixel scale") == ""
    against = header_of(cards(**TAN, CD1_1=-DEG, CD2_2=DEG, CDELT1=-DEG / 2, CDELT2=DEG / 2))
    assert against.disputed("pixel scale").endswith("the CD matrix 0.06, CDELT1 0.03")


def test_the_wcs_of_another_hdu_counts_where_its_pixels_are_the_same():
    wcs = {**TAN, "CDELT1": -DEG, "CDELT2": DEG}
    image = hdu({"EXTNAME": "SCI"})
    for others in (
        [hdu(wcs, None, primary=True), image],
        [hdu({"PIXSCALE": "0.06"}, None, primary=True), image],
        [hdu({}, None, primary=True), image, hdu({**wcs, "EXTNAME": "WHT"})],
    ):
        assert header_of(image.header, fits.HDUList(others)).pixel_scale == pytest.approx(0.06)
    for other in (hdu(wcs, (48, 48), primary=True), hdu({"PIXSCALE": 0.06}, (48, 48), primary=True)):
        assert header_of(image.header, fits.HDUList([other, image])).pixel_scale is None
    mine = hdu({**TAN, "CDELT1": -DEG / 2, "CDELT2": DEG / 2})
    assert header_of(mine.header, fits.HDUList([hdu(wcs, None, primary=True), mine])).pixel_scale == pytest.approx(0.03)


def test_the_scale_is_that_of_the_image_s_place():
    """Where the projection or the distortion stretches, astropy's scale at the reference point is not the image's."""
    far = cards(**{**TAN, "CRPIX1": 48.5 + 2 / DEG}, CDELT1=-DEG, CDELT2=DEG)  # 2 degrees off: 1/cos and 1/cos²
    assert 3600 * proj_plane_pixel_scales(WCS(far))[0] == pytest.approx(0.06, rel=1e-9)
    assert header_of(far).pixel_scale == pytest.approx(0.06 * np.cos(np.radians(2)) ** 1.5, rel=1e-5)
    plate = {"CTYPE1": "RA---CAR", "CTYPE2": "DEC--CAR", "CRVAL1": 150.0, "CRVAL2": 0.0, "CDELT1": -DEG, "CDELT2": DEG}
    assert "its pixels are 0.03 x 0.06 arcsec" in header_of(cards(**plate, CRPIX1=48.5, CRPIX2=48.5 - 60 / DEG)).unread
    sip = {**TAN, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CD1_1": -DEG, "CD2_2": DEG, "CRPIX1": -951.5}
    bent = cards(**sip, A_ORDER=2, B_ORDER=2, A_2_0=2e-6, B_1_1=4e-6)  # 1 + 2e-6 x 2 x 1000 both ways
    assert header_of(bent).pixel_scale == pytest.approx(0.06 * 1.004, rel=1e-4)
    steep = cards(**sip, A_ORDER=2, B_ORDER=2, A_2_0=2e-5)
    assert "its pixels are 0.0624 x 0.06 arcsec" in header_of(steep).unread
    tpv = {
        **TAN,
        "CTYPE1": "RA---TPV",
        "CTYPE2": "DEC--TPV",
        "PV1_1": 1.005,
        "PV2_1": 1.005,
        "CD1_1": -DEG,
        "CD2_2": DEG,
    }
    assert header_of(cards(**tpv)).pixel_scale == pytest.approx(0.06 * 1.005, rel=1e-6)


@pytest.mark.parametrize(
    "values", [{"CTYPE1": "RA---XYZ", "CTYPE2": "DEC--XYZ"}, {"CTYPE1": "RA---TAN", "CTYPE2": "RA---TAN"}]
)
def test_a_wcs_that_astropy_refuses_still_has_its_linear_part(values):
    assert header_of(cards(**values, CDELT1=-DEG, CDELT2=DEG)).pixel_scale == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        *(
            (text, Unit("electron", True, 1.0))
            for text in (
                *(
                    "ELECTRONS/S",
                    "electron / s",
                    "electron s-1",
                    "electron/s",
                    "e-/s",
                    "e-/sec",
                    "e- s-1",
                    "e/s",
                    "el/s",
                ),
                *(
                    "electrons s^-1",
                    "electron s**-1",
                    "electron.s-1",
                    "ELECTRONS/SEC",
                    "photons/s",
                    "ph / s",
                    "photon s-1",
                ),
                *("Electrons per second", "[electron/s]", "electron/s/pix", "electron / (pix s)", "e-/second"),
            )
        ),
        *(
            (text, Unit("electron", False, 1.0))
            for text in ("ELECTRONS", "electron", "e-", "E-", "e", "photon", "photons")
        ),
        *(
            (text, Unit("count", True, 1.0))
            for text in ("COUNTS/S", "counts/s", "ct / s", "cps", "CPS", "cts/s", "count s-1")
        ),
        *((text, Unit("count", False, 1.0)) for text in ("COUNTS", "count", "ct", "cts")),
        *((text, Unit("adu", False, 1.0)) for text in ("ADU", "adu", "DN", "dn", "adus")),
        *((text, Unit("adu", True, 1.0)) for text in ("DN/s", "ADU/s", "adu / s", "DN s-1", "adu/sec")),
        ("1000 electron / s", Unit("electron", True, 1000.0)),
        ("electron / min", Unit("electron", True, pytest.approx(1 / 60))),
        *(
            (text, None)
            for text in ("nJy", "MJy/sr", "nanomaggy", "nmgy", "mag", "", "erg/s/cm2", "electron2", "furlong", "s")
        ),
        *((text, None) for text in ("electron / arcsec2", "electron adu", "electron s", "(", "electron/s/", "1/0")),
    ],
)
def test_units_are_understood_however_they_are_written(text, unit):
    assert counting_unit(text) == unit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        headers._unit.cache_clear()
        assert counting_unit(text) == unit


@pytest.mark.parametrize("unit", [units.electron / units.s, units.adu / units.s, units.photon, units.count, units.DN])
def test_astropy_s_own_files_are_understood(unit, tmp_path):
    CCDData(exposed().astype("f4"), unit=unit).write(tmp_path / "x.fits")
    found = counting_unit(header_of(fits.getheader(tmp_path / "x.fits")).unit)
    assert found == counting_unit(str(unit))
    assert found.rate == ("/" in str(unit))


@pytest.mark.parametrize("unit", ["MJy/sr", "nJy"])
def test_a_unit_of_flux_is_no_photon_count_and_the_remedy_is_said(unit):
    rough = exposed() * 1e-3 + np.random.default_rng(1).normal(0, 1e-4, (96, 96))
    done = prepare(Raw(rough, Header(0.05, unit, 1000.0, 2.0)), GRID)
    assert done.units == "normalised"
    assert f"no photon counts: the unit {unit} is none of them; give --gain photons per unit" in done.notes


def photons(header: Header, **known: float) -> tuple[float, tuple[str, ...], str]:
    """Photons per unit of the values, flags, and what is said."""
    done = prepare(Raw(exposed() / 7.0, header), GRID, read_instrument(pixel_scale=0.05, sky=10, **known))
    note = next(note for note in done.notes if note.startswith("photons = "))
    return float(note.split()[4]), words(done), note


def test_a_measured_gain_wins_over_the_commanded_one():
    header = header_of(cards(BUNIT="COUNTS", CCDGAIN=2.0, ATODGAIN=1.97))
    assert photons(header) == (1.97, (), "photons = values x 1.97 (gain 1.97 of ATODGAIN before CCDGAIN 2)")
    apart = header_of(cards(BUNIT="COUNTS", CCDGAIN=2.0, ATODGAIN=1.55))
    assert photons(apart)[:2] == (1.55, ("header disagrees on the gain: ATODGAIN 1.55, CCDGAIN 2",))
    # A gain that is not used is no harm, nor is one that the user overrules.
    electrons = header_of(cards(BUNIT="electron", CCDGAIN=2.0, ATODGAIN=1.55))
    assert photons(electrons)[:2] == (1.0, ())
    assert photons(apart, gain=3.0)[:2] == (3.0, ())


def test_the_calibrated_gains_of_the_amplifiers_are_one_statement():
    gains = {"ATODGNA": 2.02, "ATODGNB": 1.886, "ATODGNC": 2.017, "ATODGND": 2.011, "CCDGAIN": 2.0}
    assert header_of(cards(**gains, CCDAMP="C")).gain == pytest.approx(2.017)
    assert header_of(cards(**gains, CCDAMP="ABCD")).gain == header_of(cards(**gains)).gain == pytest.approx(1.9835)
    assert header_of(cards(**gains)).said("gain") == " of ATODGNABCD before CCDGAIN 2"


@pytest.mark.parametrize("quantity", ["gain", "exposure"])
def test_the_table_s_order_is_the_order_of_precedence(quantity):
    for earlier, later in zip(KEYWORDS[quantity], KEYWORDS[quantity][1:]):
        header = fits.Header()
        for key, value in ((later, 3.0), (earlier, 2.0)):
            header[f"HIERARCH {key}" if " " in key else key] = value
        assert getattr(header_of(header), quantity) == 2.0
        assert f"{earlier} 2, {later} 3" in header_of(header).disputed(quantity)
        assert header_of(fits.Header([(f"HIERARCH {later}" if " " in later else later, 3.0)])).said(quantity) == ""


def test_the_document_states_the_same_order():
    lines = (Path(__file__).parents[3] / "docs" / "your-images.md").read_text(encoding="utf-8").splitlines()
    for quantity, keys in KEYWORDS.items():
        row = next(line for line in lines if line.startswith(f"| {quantity}, ")).split("|")[2]
        stated = [key for key in re.findall("`([^`]+)`", row) if not re.match(r"CD\w*i|PCi|ATODGN|CCDAMP", key)]
        assert stated == list(keys), quantity


def test_counts_without_a_gain_are_taken_for_photons_where_their_noise_says_so():
    header = Header(0.05, "COUNTS")
    for image, flags in (
        (exposed(), ()),
        (exposed() / 1.5, ("gain assumed to be 1",)),
        (exposed() * 1.5, ("gain assumed to be 1",)),
        (exposed() - 10.0, ("gain assumed to be 1",)),  # the sky's mean, which would tell, is gone
    ):
        assert words(prepare(Raw(image, header), GRID)) == flags
        assert prepare(Raw(image, header), GRID, read_instrument(gain=1)).flags == ()
        assert prepare(Raw(image, Header(0.05, "electron")), GRID).flags == ()
        assert prepare(Raw(image / 2, Header(0.05, "COUNTS", None, 2.0)), GRID).flags == ()


def test_photons_that_are_said_to_be_something_else_are_flagged():
    """Multiplied by the exposure their noise would be far too small: a smooth lens would be `sphere`."""
    photons, plain, rate = exposed(), Header(0.05), Header(0.05, "electron/s", 600.0)
    for header, told in ((plain, {"exposure": 600}), (plain, {"gain": 2}), (rate, {})):
        assert "photons already" in words(prepare(Raw(photons, header), GRID, read_instrument(**told)))
    for image, header, told in (
        (photons, plain, {"gain": 1}),
        (photons / 600, plain, {"exposure": 600}),
        (photons / 600, rate, {}),
        (photons - 10.0, plain, {"gain": 2}),  # the sky's mean, which would tell, is gone
    ):
        assert "photons already" not in words(prepare(Raw(image, header), GRID, read_instrument(**told)))
    weighed = Raw(photons, plain, noise=np.sqrt(photons + 1.0))  # by its map, whatever the exposure
    assert words(prepare(weighed, GRID, read_instrument(exposure=600))) == ()


def test_eso_s_gain_is_the_inverse_of_its_conad():
    header = fits.Header([("HIERARCH ESO DET OUT1 GAIN", 0.5, "[ADU/e-] Conversion electrons to ADU")])
    assert header_of(header).gain == 2.0
    header["HIERARCH ESO DET OUT1 CONAD"] = (2.01, "[e-/ADU] Conversion ADUs to electrons")
    assert header_of(header).gain == 2.01
    assert header_of(header).disputed("gain") == ""


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({"EXPTIME": "2100.0"}, 2100.0),
        ({"EXPTIME": " 2100 s"}, 2100.0),
        ({"EXPTIME": "35 min"}, 2100.0),
        ({"EXPTIME": 2100}, 2100.0),
        ({"XPOSURE": 2100.0}, 2100.0),
        ({"EFFEXPTM": 2100.0}, 2100.0),
        ({"EXPOSURE": 2100.0, "EXPTIME": 0.0}, 2100.0),
        ({"EXPTIME": "long"}, None),
        ({"EXPTIME": "2100 apples"}, None),
        ({"EXPTIME": True}, None),
        ({"EXPTIME": -1.0}, None),
    ],
)
def test_exposures_are_seconds_however_they_are_written(values, seconds):
    assert header_of(cards(**values)).exposure == seconds


def test_exposures_that_disagree_are_flagged_where_they_count():
    values = {"EXPTIME": 700.0, "TEXPTIME": 2100.0}
    factor, flags, note = photons(header_of(cards(BUNIT="electron / s", **values)))
    assert (factor, flags) == (2100, ("header disagrees on the exposure: TEXPTIME 2100, EXPTIME 700",))
    assert note.endswith("of 2100 s of TEXPTIME before EXPTIME 700)")
    assert photons(header_of(cards(BUNIT="electron", **values)))[:2] == (1.0, ())
    assert photons(header_of(cards(BUNIT="electron / s", **values)), exposure=7.0)[:2] == (7.0, ())
    assert photons(header_of(cards(BUNIT="e-/s", EXPTIME=2100.0, XPOSURE=2080.0)))[1] == ()
    # So does the primary HDU against the image's own.
    image = hdu({"BUNIT": "e-/s", "EXPTIME": 700.0})
    both = header_of(image.header, fits.HDUList([hdu({"EXPTIME": 2100.0}, None, primary=True), image]))
    assert both.disputed("exposure") == "exposure: EXPTIME 700, EXPTIME 2100"


ACS = (  # drizzled: drz
    {
        "INSTRUME": "ACS",
        "EXPTIME": 2100.0,
        "TEXPTIME": 2100.0,
        "CCDAMP": "ABCD",
        "CCDGAIN": 2.0,
        "ATODGNA": 2.02,
        "D001SCAL": 0.05,
    },
    {
        **TAN,
        "EXTNAME": "SCI",
        "BUNIT": "ELECTRONS/S",
        "CD1_1": -7.7e-06,
        "CD1_2": 1.1547e-05,
        "CD2_1": 1.1547e-05,
        "CD2_2": 7.7e-06,
    },
    Header(0.04997, "ELECTRONS/S", 2100.0, 2.02),
)
WFC3 = (  # not drizzled: flt of the infrared channel, whose pixels are no squares
    {"INSTRUME": "WFC3", "EXPTIME": 602.9, "CCDGAIN": 2.5, "ATODGNA": 2.34},
    {
        **TAN,
        **{"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "EXTNAME": "SCI", "BUNIT": "ELECTRONS/S", "A_ORDER": 2},
        **{"B_ORDER": 2, "A_2_0": 8e-8, "CD1_1": -3.76e-05, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 3.37e-05},
    },
    Header(None, "ELECTRONS/S", 602.9, 2.34, "its pixels are 0.1354 x 0.1213 arcsec; resample it to square ones first"),
)
JWST = (
    {"TELESCOP": "JWST", "EFFEXPTM": 3156.9, "TEXPTIME": 3156.9, "DURATION": 3221.0, "XPOSURE": 3156.9},
    {
        **TAN,
        **{"EXTNAME": "SCI", "BUNIT": "MJy/sr", "CUNIT1": "deg", "CUNIT2": "deg", "CDELT1": 8.7e-06, "CDELT2": 8.7e-06},
        **{"PC1_1": -0.99, "PC1_2": 0.141067, "PC2_1": 0.141067, "PC2_2": 0.99, "PHOTMJSR": 1.5, "PIXAR_A2": 0.00098},
    },
    Header(0.03132, "MJy/sr", 3156.9, None),
)
EUCLID = (
    {"TELESCOP": "EUCLID", "INSTRUME": "VIS"},
    {
        **TAN,
        "CD1_1": -2.7777778e-05,
        "CD1_2": 0.0,
        "CD2_1": 0.0,
        "CD2_2": 2.7777778e-05,
        "BUNIT": "ADU",
        "GAIN": 3.48,
        "EXPTIME": 2264.0,
    },
    Header(0.1, "ADU", 2264.0, 3.48),
)
DES = (
    {"TELESCOP": "CTIO 4.0-m telescope", "PIXSCAL1": 0.27, "PIXSCAL2": 0.27, "EXPTIME": 90.0},
    {
        **TAN,
        **{"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_0": 0.0, "PV1_1": 1.0, "PV2_0": 0.0, "PV2_1": 1.0},
        **{"CD1_1": 0.0, "CD1_2": 7.2858e-05, "CD2_1": -7.2858e-05, "CD2_2": 0.0, "BUNIT": "electrons", "GAINA": 4.0},
    },
    Header(0.26229, "electrons", 90.0, 4.0),
)
HSC = (
    {"EXPTIME": 1200.0},
    {**TAN, "CD1_1": -4.66666666666396e-05, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 4.66666666666396e-05, "BUNIT": "nJy"},
    Header(0.168, "nJy", 1200.0, None),
)
ESO = (
    {
        "EXPTIME": 360.0,
        "HIERARCH ESO DET OUT1 CONAD": 2.1,
        "HIERARCH ESO DET OUT1 GAIN": 0.476,
        "HIERARCH ESO INS PIXSCALE": 0.126,
    },
    {**TAN, "CUNIT1": "deg", "CUNIT2": "deg", "CD1_1": -3.5e-05, "CD2_2": 3.5e-05, "BUNIT": "ADU"},
    Header(0.126, "ADU", 360.0, 2.1),
)


@pytest.mark.parametrize(("primary", "science", "expected"), [ACS, WFC3, JWST, EUCLID, DES, HSC, ESO])
def test_telescopes_headers_are_read_right(primary, science, expected):
    image = hdu(science)
    header = header_of(image.header, fits.HDUList([hdu(primary, None, primary=True), image]))
    assert (header.unit, header.exposure, header.gain) == (expected.unit, expected.exposure, expected.gain)
    assert header.pixel_scale == (expected.pixel_scale and pytest.approx(expected.pixel_scale, rel=1e-3))
    assert header.unread == expected.unread
    # Of these only DECam's nominal 0.27 arcsec strays from its WCS, and ESO writes its gain without a unit here.
    disputed = "pixel scale: the CD matrix 0.26229, PIXSCAL1 0.27, PIXSCAL2 0.27"
    assert header.disputed("pixel scale") == (disputed if "PIXSCAL1" in primary else "")


def test_whatever_stands_in_a_header_is_no_traceback():
    values = (
        "",
        " ",
        "x",
        "1",
        "-1",
        "1e400",
        "nan",
        0,
        -3,
        1e300,
        1e-300,
        True,
        "RA---TAN",
        "[deg]",
        "1 deg/pix",
        "/",
    )
    keys = [*KEYWORDS["pixel scale"], *KEYWORDS["exposure"], *KEYWORDS["gain"], "BUNIT", "OVERSAMP", "CCDAMP"]
    keys += [f"{name}{i}" for name in ("CTYPE", "CUNIT", "CDELT", "CRVAL", "CRPIX") for i in (1, 2)]
    keys += [f"{name}{i}_{j}" for name in ("CD", "PC", "PV") for i in (1, 2) for j in (1, 2)]
    random = np.random.default_rng(0)
    for _ in range(300):
        header = cards(**TAN, CDELT1=-DEG, CDELT2=DEG)
        for key in random.choice(keys, 5):
            header[f"HIERARCH {key}" if " " in key else key] = values[random.integers(len(values))]
        found = header_of(header)
        assert found.pixel_scale is None or 0 < found.pixel_scale < np.inf
        assert "\n" not in found.unread
