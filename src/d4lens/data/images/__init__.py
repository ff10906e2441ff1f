"""Images from anywhere: found, read, their photon counts recovered, put on a network's grid."""

from d4lens.data.images.counts import (
    COUNTS,
    DARK_SHARE,
    MIN_SIDE,
    NORMALISED,
    Counts,
    as_image,
    recover_counts,
)
from d4lens.data.images.formats import READERS, Raw, parse_npy
from d4lens.data.images.headers import Header, header_of
from d4lens.data.images.instruments import Instrument, read_instrument
from d4lens.data.images.psf import Psf
from d4lens.data.images.regrid import SAME_SCALE, Prepared, prepare
from d4lens.data.images.sources import ImageSource, find, read_image

__all__ = [
    "COUNTS",
    "DARK_SHARE",
    "MIN_SIDE",
    "NORMALISED",
    "READERS",
    "SAME_SCALE",
    "Counts",
    "Header",
    "ImageSource",
    "Instrument",
    "Prepared",
    "Psf",
    "Raw",
    "as_image",
    "find",
    "header_of",
    "parse_npy",
    "prepare",
    "read_image",
    "read_instrument",
    "recover_counts",
]
