import pytest
import torch

from d4lens.macrofit import fit_smooth_lens, preset_model
from d4lens.observation import bin_pixels
from d4lens.simulator import preset, render
from d4lens.studies import physical_limit


@pytest.fixture(scope="session")
def lens():
    """The preset's smooth lens on 75 pixels."""
    return preset_model("deeplense", binning=2)


@pytest.fixture(scope="session")
def images(lens):
    """Four lenses with a mass of 1e10 Msun each on the ring, one without: truth, counts (5, 75, 75) and their smooth fits."""
    made_by = preset("deeplense")
    masses, angles = [1e10] * 4 + [1e3], [0.4, 2.0, 3.7, 5.5, 1.0]
    truth = physical_limit.one_subhalo(made_by, 19, masses, [1.0] * 5, angles)
    counts = bin_pixels(render(truth, made_by), 2).float()
    return truth, counts, fit_smooth_lens(counts, lens)


@pytest.fixture
def noise():
    return torch.Generator().manual_seed(4)
