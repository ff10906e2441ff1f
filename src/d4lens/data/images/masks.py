"""Pixels without data: given by a mask, by a file's own extensions, or seen from values that no light makes.

Everywhere in the package a pixel without data is NaN. In a mask nonzero or True says that there are none, as numpy's
masked arrays have it.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]
Mask = NDArray[np.bool_]

MASKS = ("MASK", "DQ", "BPM", "FLAGS", "FLAG", "BADPIX")
"""Names of masks, whose pixels of other values than 0 hold no data."""
_SPREADS = ("ERR", "ERROR", "UNCERT", "SIGMA", "RMS", "VAR", "VARIANCE")
_WEIGHTS = ("WHT", "WEIGHT", "IVAR")
COMPANIONS = (*MASKS, *_SPREADS, *_WEIGHTS)
"""Extensions of a FITS file, and arrays of an .npz, that say where the image beside them holds data."""
_TELESCOPES = {"JWST": 1, "ROMAN": 1}  # the bit DO_NOT_USE; their other bits tell what was corrected
_PLANES = ("BAD", "SAT", "CR", "NO_DATA")  # of LSST's, whose others mark detections and the like

_CHANCE = 1e-3  # images without defects in which one is seen
_MOST, _SOME = 0.35, 0.02  # share of an image that one value may have: the lowest, the highest or 0, and any other
_ON_AN_ARC = 0.05  # share of neighbours that have one value where a hundred photons fall on a pixel
_TOO_MANY = 0.8  # such shares, beyond which nothing is said
_TRIED = 16  # values, the most frequent ones
_LONG = 32  # pixels that not even a clipped sky makes equal, all of them, to one another or to their neighbours


def is_companion(name: str) -> bool:
    """Say whether an array of a file stands beside its image and is none itself.

    Parameters
    ----------
    name : str
        The array's, or that of one of its planes, NAME:0.

    Returns
    -------
    bool
    """
    return name.partition(":")[0].upper() in COMPANIONS


def without(image: Array, mask: Mask) -> Array:
    """Return an image with NaN where a mask is True.

    Parameters
    ----------
    image : numpy.ndarray
        (H, W).
    mask : numpy.ndarray
        (H, W) bool.

    Returns
    -------
    numpy.ndarray
        A copy, or the image itself where the mask is nowhere True.
    """
    if not mask.any():
        return image
    image = image.astype(image.dtype if image.dtype.kind == "f" else np.float64)
    image[mask] = np.nan
    return image


def declared(name: str, values: Array, header: Mapping[str, Any], primary: Mapping[str, Any]) -> Mask:
    """Say where the companion of an image in its file tells that it holds no data.

    DQ, MASK and the like: where they are nonzero; of JWST and Roman where the bit 1 (DO_NOT_USE) is set; where the header
    names bits by MP_ cards, as LSST's does, where BAD, SAT, CR or NO_DATA is. ERR, VARIANCE and the like: where they are
    not finite. WHT, IVAR and the like: where they are not above 0, unless they are so throughout.

    Parameters
    ----------
    name : str
        The companion's, one of COMPANIONS.
    values : ndarray
        Its values, (H, W).
    header, primary : mapping
        Its header, and that of the file.

    Returns
    -------
    ndarray
        (H, W) bool.
    """
    if name in _SPREADS:
        return ~np.isfinite(values)
    if name in _WEIGHTS:
        unseen = ~(values > 0)
        return unseen if not unseen.all() else np.zeros(values.shape, bool)
    if values.dtype.kind not in "iu":
        return np.not_equal(values, 0)
    planes = [header.get(f"MP_{plane}") for plane in _PLANES]
    if any(isinstance(bit, int) for bit in planes):
        bits = sum(1 << bit for bit in planes if isinstance(bit, int) and 0 <= bit < 63)
    else:
        bits = _TELESCOPES.get(str(primary.get("TELESCOP", "")).strip().upper(), -1)
    return np.not_equal(values.astype(np.int64) & bits, 0)


def dead(image: Array) -> Mask:
    """Find where an image shows values that no light makes: padding, saturated plateaus, dead blocks and columns.

    Padding are whole rows and columns at the rim that have one value, that repeat one another, that mirror those behind
    them, or that the opposite rim repeats; both rims are then padding, since either may be. The others are connected pixels
    of exactly one value that hold a square, or a stretch of a row or column, of it so large that among as many independent
    pixels one would turn up in less than a thousandth of all images. A value that more than a third of the image within its
    padding has is where its sky was clipped, and no defect.

    Parameters
    ----------
    image : ndarray
        (H, W), NaN where there are no data.

    Returns
    -------
    ndarray
        (H, W) bool, False where the image is NaN.
    """
    found, within = np.isfinite(image), _unpadded(image)
    found[within] = _defects(image[within])
    return found


def _unpadded(image: Array) -> tuple[slice, slice]:
    """Return the rows and columns of an image (H, W) within its padding."""
    spans = [[0, side] for side in image.shape]
    peeled = True
    while peeled:
        peeled = False
        for axis, end in ((0, 0), (0, 1), (1, 0), (1, 1)):
            lines = np.moveaxis(image[slice(*spans[0]), slice(*spans[1])], axis, 0)[:: -1 if end else 1]
            n = 0
            while n + 1 < len(lines) and _one_value(lines[n]):
                n += 1
            first = n
            while n + 1 < len(lines) and _same(lines[n], lines[n + 1]):
                n += 1
            n += n > first  # the last of those that repeat one another
            n, wrapped = (n, 0) if n else _copied(lines)
            for here, lost in ((end, n + wrapped), (1 - end, wrapped)):
                spans[axis][here] += -lost if here else lost
            peeled |= n + wrapped > 0
    return slice(*spans[0]), slice(*spans[1])


def _copied(lines: Array) -> tuple[int, int]:
    """Count the lines at the beginning of an image (n, m) that mirror those behind them, or that its end repeats.

    Nothing tells which of two ends is the original. What mirrors half of the image or more is an image without noise.
    """
    n = len(lines)
    for j in np.flatnonzero(_alike(lines, lines[:1]).all(1))[:0:-1]:
        mirrored, wrapped = (j + 1) // 2, n - j
        if 3 * mirrored < n and _repeats(lines[:mirrored], lines[j : j - mirrored : -1]):
            return int(mirrored), 0
        if 2 * wrapped < n and _repeats(lines[:wrapped], lines[j:]):
            return 0, int(wrapped)
    return 0, 0


def _alike(lines: Array, others: Array) -> Mask:
    alike: Mask = (lines == others) | ~np.isfinite(lines) | ~np.isfinite(others)
    return alike


def _repeats(lines: Array, others: Array) -> bool:
    """Say whether all lines are the others', two of them at least with contrast."""
    telling = sum(not _one_value(line) and _same(line, other) for line, other in zip(lines, others))
    return telling > 1 and bool(_alike(lines, others).all())


def _one_value(line: Array) -> bool:
    seen = line[np.isfinite(line)]
    return not len(seen) or (len(seen) >= _LONG and bool(seen.min() == seen.max()))


def _same(line: Array, other: Array) -> bool:
    seen = np.isfinite(line) & np.isfinite(other)
    return int(seen.sum()) >= _LONG and bool((line == other)[seen].all())


def _defects(image: Array) -> Mask:
    found = np.zeros(image.shape, bool)
    good = np.isfinite(image)
    n = int(good.sum())
    if not n or (low := image[good].min()) == (high := image[good].max()):
        return found
    filled = np.where(good, image, low)
    squares = ndimage.maximum_filter(filled, 3) == ndimage.minimum_filter(filled, 3)
    values, often = np.unique(filled[squares], return_counts=True)
    values = values[np.argsort(-often, kind="stable")[:_TRIED]]
    edge, (height, width) = max(2, min(image.shape) // 8), image.shape
    corners = [
        (y, x) for y in (slice(edge), slice(height - edge, None)) for x in (slice(edge), slice(width - edge, None))
    ]
    for value in {float(low), float(high), 0.0, *values.tolist()}:
        same = good & (image == value)
        share = float(same.sum()) / n
        if not 0 < share <= (_MOST if value in (0, low, high) else _SOME):
            continue  # one of the sky's levels, where there are few
        # Where the sky has but few levels, or was clipped, its pixels share one in every corner; on an arc neighbours do so
        # more often than the image's pixels at large.
        of_sky = min(float(same[y, x].mean()) for y, x in corners)
        of_sky = of_sky if of_sky < 1 else 0.0  # not even one other pixel in all four: cut away, about an aperture
        chance = max(1.5 * share, of_sky, 0 if value == low else _ON_AN_ARC)
        if chance > _TOO_MANY:
            continue
        length = max(4, math.ceil(math.log(_CHANCE / (2 * n)) / math.log(chance)))
        side = math.ceil(length**0.5)
        solid = [np.ones(shape, bool) for shape in ((side, side), (1, length), (length, 1))]
        seeds = np.logical_or.reduce([ndimage.binary_opening(same, each) for each in solid])
        found |= ndimage.binary_propagation(seeds, mask=same)
    return found
