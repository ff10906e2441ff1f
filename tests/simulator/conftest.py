import pytest

from d4lens.simulator import Preset, preset


@pytest.fixture(scope="session")
def deeplense() -> Preset:
    return preset("deeplense")


@pytest.fixture(scope="session")
def tiny() -> Preset:
    """The same lenses on so few and coarse pixels that a data set takes no time."""
    return preset("deeplense", {"n_pixels": 16, "pixel_scale": 0.4, "psf_sigma": 0.4})
