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

COMPANIONS = ("DQ", "MASK", "BPM", "ERR", "WHT")
"""Extensions of a FITS file that say where the image beside them holds data."""
_TELESCOPES = {"JWST": 1, "ROMAN": 1}  # the bit DO_NOT_USE; their other bits tell what was corrected
_PLANES = ("BAD", "SAT", "CR", "NO_DATA")  # of LSST's, whose others mark detections and the like

_CHANCE = 1e-3  # images without defects in which one is seen
_MOST, _SOME = 0.35, 0.02  # share of an image that one value may have: the lowest, the highest or 0, and any other
_ON_AN_ARC = 0.05  # share of neighbours that have one value where a hundred photons fall on a pixel
_TOO_MANY = 0.8  # such shares, beyond which nothing is said
_TRIED = 16  # values, the most frequent ones


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

    DQ, MASK and BPM: where they are nonzero; of JWST and Roman where the bit 1 (DO_NOT_USE) is set; where the header names
    bits by MP_ cards, as LSST's does, where BAD, SAT, CR or NO_DATA is. ERR: where it is not finite. WHT: where it is
    not above 0, unless it is so throughout.

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
    if name == "ERR":
        return ~np.isfinite(values)
    if name == "WHT":
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
    """Find where an image shows values that no light makes: saturated plateaus, dead blocks and columns, filled borders.

    These are connected pixels of exactly one value that hold a square, or a stretch of a row or column, of it so large that
    among as many independent pixels one would turn up in less than a thousandth of all images. A value that more than a
    third of the image has is where its sky was clipped, and no defect.

    Parameters
    ----------
    image : ndarray
        (H, W), NaN where there are no data.

    Returns
    -------
    ndarray
        (H, W) bool, False where the image is NaN.
    """
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
        chance = max(1.5 * share, min(float(same[y, x].mean()) for y, x in corners), 0 if value == low else _ON_AN_ARC)
        if chance > _TOO_MANY:
            continue
        length = max(4, math.ceil(math.log(_CHANCE / (2 * n)) / math.log(chance)))
        side = math.ceil(length**0.5)
        solid = [np.ones(shape, bool) for shape in ((side, side), (1, length), (length, 1))]
        seeds = np.logical_or.reduce([ndimage.binary_opening(same, each) for each in solid])
        found |= ndimage.binary_propagation(seeds, mask=same)
    return found
