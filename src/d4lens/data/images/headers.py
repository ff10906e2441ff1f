"""What a FITS header says of its image: pixel scale, unit, exposure and gain, with all that it says of each."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from d4lens.errors import D4LensError

Array = NDArray[Any]

KEYWORDS: dict[str, tuple[str, ...]] = {
    "pixel scale": (
        *("PIXSCALE", "PIXSCAL1", "PIXSCAL2", "PIXSCL", "SECPIX", "SECPIX1", "SECPIX2", "PIXELSCL", "D001SCAL"),
        *("SECPPIX", "ARCPIX", "ESO INS PIXSCALE"),
    ),
    "exposure": (
        *("TEXPTIME", "EXPTIME", "XPOSURE", "EFFEXPTM", "EXPOSURE", "EXP_TIME", "EXPOSED", "ITIME"),
        "ESO DET WIN1 DIT1",
    ),
    "gain": (
        *("ATODGAIN", "ESO DET OUT1 CONAD", "EGAIN"),
        *("GAIN", "GAINEFF", "GAINA", "GAINB", "ESO DET OUT1 GAIN", "CCDGAIN"),
    ),
}
"""Keywords of each quantity, what wins first (docs/your-images.md): measured gains before commanded ones, the exposure
of a whole product before that of one of its parts. The WCS comes before the keywords of a pixel scale."""
TOLERANCES = {"pixel scale": 0.01, "exposure": 0.03, "gain": 0.03}
"""Relative difference above which two statements disagree. chi2 per pixel goes with gain and exposure, and scatters by
0.019 on 75 x 75 pixels; 0.01 of the pixel scale shifts a ring of 10 pixels by 0.1."""

_DEFAULTS = {"pixel scale": "arcsec", "exposure": "s", "gain": "electron / adu"}
_SCALES = (1e-3, 60.0)  # arcsec per pixel that a number without a unit may mean
_SQUARE = 0.01
_REMEDY = "give --pixel-scale ARCSEC"
_UNEVEN = "its pixels are "
_DEGREE = np.pi / 180
_ARCSEC = 3600 / _DEGREE  # in a radian
_SKY = {"RA", "DEC", "GLON", "GLAT", "ELON", "ELAT", "SLON", "SLAT", "HLON", "HLAT"}
_COPIED = re.compile(r"CTYPE[12]|(LON|LAT)POLE|PV[12]_\d+|[AB]_(ORDER|\d_\d)")
_WCS = re.compile(
    r"(CTYPE|CUNIT|CRVAL|CRPIX|CDELT|CROTA)[12]|(CD|PC)[12]_[12]|(LON|LAT)POLE|PV[12]_\d+|[AB]_(ORDER|\d_\d)|RADESYS|EQUINOX"
)
_COUNTED = {"electron": "electron", "ph": "electron", "ct": "count", "adu": "adu", "DN": "adu"}
_LINEAR = {"", "LINEAR", "PIXEL", "PIXELS", "X", "Y", "POS", "POS.X", "POS.Y"}
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][-+]?\d+)?)\s*(.*?)\s*$")
_PER_PIXEL = re.compile(r"\s*(/|\bper\b)\s*(pix|pixels?|px)\b\.?|\s*\b(pix|pixel|px)\s*(\^|\*\*)?\s*-1\b", re.I)
# Words that headers write for what astropy.units calls otherwise; DN, ADU and counts are all told apart from electrons
# by the gain alone.
_WORDS = {
    **dict.fromkeys(("electrons", "elec", "el", "e", "photoelectron", "photoelectrons"), "electron"),
    **dict.fromkeys(("photons", "phot", "ph"), "photon"),
    **dict.fromkeys(("counts", "count", "cts", "cnts", "cnt"), "ct"),
    **dict.fromkeys(("adus", "dns", "dn"), "adu"),
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("degree", "degrees", "degs"), "deg"),
    **dict.fromkeys(("arcseconds", "arcsecs", "asec", "asecs", "arcs"), "arcsec"),
    **dict.fromkeys(("milliarcsec", "milliarcsecs", "milliarcsecond", "milliarcseconds", "marcsec"), "mas"),
    **dict.fromkeys(("arcminutes", "arcminute", "arcmins", "amin"), "arcmin"),
    **dict.fromkeys(("radians", "rads"), "rad"),
    **dict.fromkeys(("pixels", "pixel", "pix", "px"), "pix"),
    "per": "/",
}


class Sky(NamedTuple):
    """Where an image lies on the sky.

    Attributes
    ----------
    centre: longitude and latitude of the image's centre, degrees.
    degrees: (2, 2) derivatives of the tangential plane's coordinates there by the image's column and row, degrees.
    frame: cards of a tangential projection in the same frame.
    """

    centre: tuple[float, float]
    degrees: Array
    frame: Mapping[str, Any]


@dataclass(frozen=True)
class Header:
    """What a file says of its image; None or "" where it says nothing.

    Attributes
    ----------
    pixel_scale: arcsec per pixel.
    unit: of the values, as it stands there.
    exposure: seconds.
    gain: electrons per unit.
    unread: one sentence on a pixel scale that is there but cannot be used.
    oversampling: pixels per detector pixel, of a calculated PSF.
    statements: all that is said of a quantity of KEYWORDS, (keyword, value) each, the winner first.
    wcs: cards of the WCS, as they stand there.
    """

    pixel_scale: float | None = None
    unit: str = ""
    exposure: float | None = None
    gain: float | None = None
    unread: str = ""
    oversampling: float = 1.0
    statements: Mapping[str, tuple[tuple[str, float], ...]] = field(default_factory=dict, compare=False, repr=False)
    wcs: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def said(self, quantity: str) -> str:
        """Return what wins and over what, such as " of ATODGAIN before CCDGAIN 2"; "" where nothing else is said.

        Parameters
        ----------
        quantity : str
            One of KEYWORDS.

        Returns
        -------
        str
            The words.
        """
        first, *rest = self.statements.get(quantity, (("", 0.0),))
        others = [f"{key} {value:.5g}" for key, value in rest if abs(value / first[1] - 1) > 1e-4]
        return f" of {first[0]} before {', '.join(others)}" if others else ""

    def sky(self, shape: tuple[int, ...]) -> Sky | None:
        """Return where an image lies on the sky by the WCS, distortions included.

        Parameters
        ----------
        shape : tuple of int
            (H, W).

        Returns
        -------
        Sky or None
            None where the header has no WCS of the sky.
        """
        from astropy.io import fits
        from astropy.wcs import WCS

        if not self.wcs:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wcs = WCS(fits.Header(dict(self.wcs)))
                if not wcs.has_celestial:
                    return None
                middle = (np.array(shape[::-1]) + 1) / 2
                at = middle + 0.5 * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
                world = wcs.all_pix2world(at, 1)[:, [wcs.wcs.lng, wcs.wcs.lat]]
        except Exception:  # wcslib refuses with errors of many types
            return None
        if not np.isfinite(world).all():
            return None
        longitude, latitude = np.radians(world - [world[0, 0], 0.0]).T
        low = latitude[0]
        # Gnomonic projection about the first of them.
        below = np.sin(low) * np.sin(latitude) + np.cos(low) * np.cos(latitude) * np.cos(longitude)
        east = np.cos(latitude) * np.sin(longitude) / below
        north = (np.cos(low) * np.sin(latitude) - np.sin(low) * np.cos(latitude) * np.cos(longitude)) / below
        plane = np.degrees([east, north])
        names = [re.split("[-_]", str(self.wcs[f"CTYPE{1 + axis}"]))[0] for axis in (wcs.wcs.lng, wcs.wcs.lat)]
        frame = {f"CTYPE{i}": f"{name:-<4}-TAN" for i, name in enumerate(names, 1)}
        frame |= {key: self.wcs[key] for key in ("RADESYS", "EQUINOX") if key in self.wcs}
        derivatives = np.stack([plane[:, 1] - plane[:, 2], plane[:, 3] - plane[:, 4]], 1)
        return Sky((float(world[0, 0]), float(world[0, 1])), derivatives, frame)

    def disputed(self, quantity: str) -> str:
        """Return the quantity and its statements where two of them disagree by more than its tolerance, else "".

        Parameters
        ----------
        quantity : str
            One of KEYWORDS.

        Returns
        -------
        str
            The words.
        """
        found = self.statements.get(quantity, ())
        if not found:
            return ""
        first, *rest = found
        against = [f"{key} {v:.5g}" for key, v in rest if abs(v / first[1] - 1) > TOLERANCES[quantity]]
        return f"{quantity}: {first[0]} {first[1]:.5g}, {', '.join(against)}" if against else ""


class Unit(NamedTuple):
    """A unit that counts: "electron", "count" or "adu" (a photon is an electron here), whether per second, and how many."""

    base: str
    rate: bool
    factor: float


def header_of(fits_header: Any, hdulist: Any = None) -> Header:
    """Return what an astropy FITS header says of its image.

    Parameters
    ----------
    fits_header : astropy.io.fits.Header
        Of the image's HDU, or a dictionary like it.
    hdulist : astropy.io.fits.HDUList, optional
        The HDUs of its file, if there are others: the primary one is asked for what the image's does not say, and any other of
        the same shape, or without an image, for the WCS.

    Returns
    -------
    Header
        A pixel scale that stands there but is not understood, or pixels that are not square, leave `pixel_scale` None and say
        why in `unread`.
    """
    others = [hdu.header for hdu in hdulist or () if hdu.header is not fits_header]
    primary = others[:1] if others and hdulist[0].header is not fits_header else []
    alike = [cards for cards in others if _shape(cards) in (_shape(fits_header), None)]
    found = {
        quantity: _distinct(statement for cards in (fits_header, *primary) for statement in _stated(cards, quantity))
        for quantity in ("exposure", "gain")
    }
    scales: list[tuple[str, float]] = []
    unread = ""
    cards = fits_header
    for cards in (fits_header, *alike):
        try:
            scales = _wcs_scales(cards)
        except D4LensError as error:
            unread = unread or str(error)
        if scales or unread.startswith(_UNEVEN):
            break
    wcs = {key: cards[key] for key in cards if _WCS.fullmatch(key)} if scales else {}
    if not unread.startswith(_UNEVEN):
        scales = _distinct([*scales, *_stated(fits_header, "pixel scale")])
        # Keywords of a primary HDU with an image of its own are that image's.
        for cards in primary:
            if cards in alike and (_shape(cards) is None or not scales):
                scales = _distinct([*scales, *_stated(cards, "pixel scale")])
    if not scales and not unread:
        unread = _not_understood(fits_header, *primary)
    found["pixel scale"] = scales
    found = {quantity: statements for quantity, statements in found.items() if statements}
    first = {quantity: statements[0][1] for quantity, statements in found.items()}
    unit = next((str(c["BUNIT"]).strip() for c in (fits_header, *primary) if str(c.get("BUNIT") or "").strip()), "")
    oversampling = next((v for key in ("OVERSAMP", "DET_SAMP") if (v := _number(fits_header.get(key)) or 0.0) > 0), 1.0)
    return Header(
        first.get("pixel scale"),
        unit,
        first.get("exposure"),
        first.get("gain"),
        "" if scales else unread,
        oversampling,
        {quantity: tuple(statements) for quantity, statements in found.items()},
        wcs,
    )


def counting_unit(text: str) -> Unit | None:
    """Read a unit that counts: "ELECTRONS/S" -> Unit("electron", True, 1.0).

    Parameters
    ----------
    text : str
        As a header has it.

    Returns
    -------
    Unit or None
        None for a unit that counts neither photons nor electrons nor steps of a converter.
    """
    unit = _unit(text) if text else None  # astropy's units take a quarter of a second to import
    if unit is None:
        return None
    powers, factor = _powers(unit)
    per_second = powers.pop("s", 0)
    base, *more = powers or ("",)
    if more or base not in _COUNTED or powers[base] != 1 or per_second not in (0, -1):
        return None
    return Unit(_COUNTED[base], per_second == -1, factor)


@lru_cache(maxsize=256)
def _unit(text: str) -> Any:
    """Return the astropy unit that a text means, however it is written; None for none."""
    from astropy import units

    text = text.strip(" []\t.")
    # Lower case first: S is a siemens, and nothing that an image's header counts or spans is one.
    plain = re.sub(r"\be(-|⁻)(?!\d)", "electron", text.lower()).replace('"', "arcsec").replace("''", "arcsec")
    plain = re.sub(r"\bcps\b", "counts/s", plain)
    plain = re.sub(r"[a-z]+", lambda word: _WORDS.get(word[0], word[0]), plain.replace("arc sec", "arcsec"))
    for spelling in (plain, text):
        # "electron/s/pix" is discouraged, and understood.
        with suppress(ValueError, TypeError, ZeroDivisionError), warnings.catch_warnings():
            warnings.simplefilter("ignore", units.UnitsWarning)
            return units.Unit(spelling) if spelling else None
    return None


def _powers(unit: Any) -> tuple[dict[str, float], float]:
    """Return the irreducible units of a unit with their powers, pixels left out, and its scale."""
    plain = unit.decompose()
    powers = {base.name: float(power) for base, power in zip(plain.bases, plain.powers, strict=True)}
    powers.pop("pix", None)
    return powers, float(plain.scale)


def _number(raw: Any) -> float | None:
    """Return the finite number in a card, also where it stands as text; None for none."""
    if isinstance(raw, str):
        match = _NUMBER.match(raw)
        raw = float(match[1].upper().replace("D", "E")) if match else None
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not isfinite(raw):
        return None
    return float(raw)


def _value(cards: Any, key: str, quantity: str) -> float | None:
    """Return the value of a card in arcsec, s or electrons per unit; None if it is no number above 0 or of another kind.

    Its unit is the text's, else that in brackets at the beginning of the comment, as the FITS standard has it.
    """
    from astropy import units

    raw = cards.get(key)
    value = _number(raw)
    if value is None or value <= 0:
        return None
    match = _NUMBER.match(raw) if isinstance(raw, str) else None
    text = match[2] if match else ""
    comments = getattr(cards, "comments", None)  # a dictionary has none
    bracketed = re.match(r"\s*\[([^\]]+)\]", comments[key] if comments is not None else "")
    stated = text or (bracketed[1] if bracketed else "")
    unit = _unit(_PER_PIXEL.sub("", stated) if quantity == "pixel scale" else stated)
    if quantity == "gain":
        # ESO's GAIN is the inverse of its CONAD.
        return 1 / value if unit is not None and _powers(unit)[0].get("electron") == -1 else value
    default = units.Unit(_DEFAULTS[quantity])
    if unit is None:
        if text and _PER_PIXEL.sub("", text):
            return None
        unit = default
    if not unit.is_equivalent(default):
        return None
    value *= float(unit.to(default))
    return value if quantity != "pixel scale" or _SCALES[0] <= value <= _SCALES[1] else None


def _stated(cards: Any, quantity: str) -> Iterator[tuple[str, float]]:
    """Return the statements of a quantity in one HDU, what wins first.

    The calibrated gains of four amplifiers are one: the mean of those that were read.
    """
    if quantity == "gain":
        amplifiers = str(cards.get("CCDAMP") or "ABCD").strip().upper()
        gains = [_value(cards, f"ATODGN{name}", quantity) for name in amplifiers if f"ATODGN{name}" in cards]
        if known := [gain for gain in gains if gain]:
            yield f"ATODGN{amplifiers}", float(np.mean(known))
    for key in KEYWORDS[quantity]:
        if key in cards and (value := _value(cards, key, quantity)) is not None:
            yield key, value


def _distinct(statements: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return list(dict.fromkeys(statements))


def _shape(cards: Any) -> tuple[int, int] | str | None:
    """Sides of an HDU's image, None where it has no data, its kind if it is a table."""
    if str(cards.get("XTENSION", "IMAGE")).strip() != "IMAGE":
        return str(cards["XTENSION"])
    return (cards.get("NAXIS1"), cards.get("NAXIS2")) if (_number(cards.get("NAXIS")) or 0) >= 2 else None


def _not_understood(*headers: Any) -> str:
    """Return a sentence on a keyword of a pixel scale whose value is none; "" where there is no such keyword."""
    for cards in headers:
        for key in KEYWORDS["pixel scale"]:
            if str(cards.get(key) or "").strip():
                return f"its header has {key} = {cards[key]!r}, which is no pixel scale in arcsec; {_REMEDY}"
    return ""


@np.errstate(all="ignore")
def _wcs_scales(cards: Any) -> list[tuple[str, float]]:
    """Arcsec per pixel by each linear part that a header's WCS has: the CD matrix, then CDELT with PC.

    Raises D4LensError for one that stands there but is not understood, and for pixels that are not square.
    """
    places = [(i, j) for i in (1, 2) for j in (1, 2)]
    keys = [f"{kind}{i}_{j}" for kind in ("CD", "PC") for i, j in places] + ["CDELT1", "CDELT2"]
    stated = {key: _number(cards[key]) for key in keys if key in cards}
    for key, value in stated.items():
        if value is None:
            raise D4LensError(f"its header has {key} = {cards[key]!r}, which is no number; {_REMEDY}")
    numbers = {key: value for key, value in stated.items() if value is not None}
    scales = []
    if any(numbers.get(f"CD{i}_{j}") for i, j in places):
        matrix = np.array([numbers.get(f"CD{i}_{j}", 0.0) for i, j in places]).reshape(2, 2)
        scales.append(("the CD matrix", _side(cards, matrix, next(key for key in numbers if key.startswith("CD")))))
    steps = [numbers.get(f"CDELT{i}") or 0.0 for i in (1, 2)]
    if not (any(steps) or any(key.startswith("PC") for key in numbers)) or (scales and set(steps) <= {0.0, 1.0}):
        return [(key, value) for key, value in scales if value]
    turn = np.array([numbers.get(f"PC{i}_{j}", float(i == j)) for i, j in places]).reshape(2, 2)
    default = max(map(abs, steps)) or 1.0  # one axis may stand for both
    shown = next(key for key in (*keys[8:], *keys) if numbers.get(key))
    # Beside a CD matrix CDELT counts for nothing, but it may contradict it.
    with suppress(D4LensError) if scales else nullcontext():
        scales.append((shown, _side(cards, turn * np.array([step or default for step in steps])[:, None], shown)))
    return [(key, value) for key, value in scales if value]


def _side(cards: Any, matrix: Array, key: str) -> float:
    """Arcsec that a square pixel measures, by the linear part (2, 2) in the axes' units; 0 where the axes are pixels.

    key: the card that a sentence shows. Raises D4LensError for what is not understood, or not square.
    """
    if not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix) < 2:
        raise D4LensError(f"its header has {key} = {cards[key]!r} in a WCS whose pixels have no area; {_REMEDY}")
    jacobian = _jacobian(cards, matrix, key)
    if jacobian is None:
        return 0.0
    across, down = np.linalg.norm(jacobian, axis=0)
    large, small = np.linalg.svd(jacobian, compute_uv=False)
    if not small > 0 or large / small - 1 > _SQUARE:
        skewed = small > 0 and abs(across / down - 1) < _SQUARE
        raise D4LensError(
            f"{_UNEVEN}{across:.4g} x {down:.4g} arcsec{', skewed' if skewed else ''}; resample it to square ones first"
        )
    return float(np.sqrt(large * small))


def _jacobian(cards: Any, matrix: Array, key: str) -> Array | None:
    """Return derivatives in arcsec of the place on the sky by pixel, at the image's middle; None where the axes are pixels.

    matrix: (2, 2) in the units of the axes. key: the card to be shown in the sentence of a D4LensError.
    """
    types = [str(cards.get(f"CTYPE{i}") or "").strip().upper() for i in (1, 2)]
    names = [str(cards.get(f"CUNIT{i}") or "").strip() for i in (1, 2)]
    long, short = sorted(np.linalg.norm(matrix, axis=1), reverse=True)
    # An axis of the sky without a unit is in degrees, but some leave out the unit that both have.
    names = [name or (names[1 - i] if long < 2 * short or not names[1 - i] else "deg") for i, name in enumerate(names)]
    sky = [re.split("[-_]", kind)[0] in _SKY for kind in types]
    radians = [_angle(name) for name in names]
    shown = f"its header has {key} = {cards[key]!r}"
    size = abs(float(np.linalg.det(matrix))) ** 0.5
    if abs(size - 1) < 1e-6 and (not names[0] or radians[0] == _DEGREE):
        return None  # what stands where nothing is known; pixels of a degree hold no lens
    if not names[0]:
        if any(sky):
            radians = [_DEGREE, _DEGREE]
        else:
            if types[0] not in _LINEAR or not _SCALES[0] <= size * 3600 <= _SCALES[1]:
                unit = f" of CTYPE1 {types[0]!r}" if types[0] else " without CTYPE and CUNIT"
                raise D4LensError(f"{shown}{unit}, which tells no pixel scale; {_REMEDY}")
            radians = [_DEGREE, _DEGREE]
    elif None in radians:
        if {name.lower().rstrip("s") for name in names} <= {"pixel", "pix"}:
            return None
        name = next(name for name, of in zip(names, radians, strict=True) if of is None)
        raise D4LensError(f"{shown} in CUNIT {name!r}, which is no angle; {_REMEDY}")
    linear: Array = matrix * np.array(radians, float)[:, None] * _ARCSEC
    if all(sky):
        found = _on_the_sky(cards, linear / 3600, [float(r) / _DEGREE for r in radians])  # type: ignore[arg-type]
        if found is not None:
            return found
    return linear


def _angle(name: str) -> float | None:
    """Radians in a unit of angle; None for anything else."""
    from astropy import units

    unit = _unit(name)
    return float(unit.to(units.rad)) if unit is not None and unit.is_equivalent(units.rad) else None


def _on_the_sky(cards: Any, degrees: Array, per_degree: list[float]) -> Array | None:
    """Return derivatives (3, 2) in arcsec of the unit vector to the sky, by astropy with projection and distortion.

    None where these make no WCS.

    The scale at the reference point is not that at the image: pixels of a plate carrée narrow towards the pole, and SIP
    and TPV stretch them.
    """
    from astropy.io import fits
    from astropy.wcs import WCS

    try:
        plain = fits.Header({key: cards[key] for key in cards if _COPIED.fullmatch(key)})
        for i in (1, 2):
            plain[f"CRPIX{i}"] = _number(cards.get(f"CRPIX{i}")) or 0.0
            plain[f"CRVAL{i}"] = (_number(cards.get(f"CRVAL{i}")) or 0.0) * per_degree[i - 1]
            for j in (1, 2):
                plain[f"CD{i}_{j}"] = degrees[i - 1, j - 1]
        shape = _shape(cards)
        middle = np.array(shape if isinstance(shape, tuple) else (2 * plain["CRPIX1"], 2 * plain["CRPIX2"]), float) / 2
        step = max(float(middle.min()) / 2, 4.0)
        ends = middle + 0.5 + step * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wcs = WCS(plain)
            longitude, latitude = np.radians(wcs.all_pix2world(ends, 1)[:, [wcs.wcs.lng, wcs.wcs.lat]]).T
    except Exception:  # wcslib refuses with errors of many types; the linear part stands all the same
        return None
    vectors = np.array([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)])
    found = (vectors[:, [0, 2]] - vectors[:, [1, 3]]) / (2 * step) * _ARCSEC
    return found if np.isfinite(found).all() else None
