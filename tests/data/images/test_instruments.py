import pytest

from d4lens.data.images import read_instrument
from d4lens.errors import D4LensError


def test_what_cannot_be_is_refused():
    for known, sentence in (
        ({"pixel_scale": 0.0}, "the pixel scale must be above 0"),
        ({"psf": "-1"}, "the PSF's sigma must be above 0"),
        ({"psf": "nan"}, "the PSF's sigma must be above 0 and finite, not nan"),
        ({"gain": -2.0}, "the gain must"),
        ({"exposure": float("inf")}, "the exposure must"),
        ({"sky": 0.0}, "the sky must"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            read_instrument(**known)
