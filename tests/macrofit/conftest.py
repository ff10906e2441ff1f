import pytest
import torch

from d4lens import simulator
from d4lens.macrofit import FIT_COLUMNS


@pytest.fixture(scope="session")
def lenses():
    """(counts (60, 150, 150), true FIT_COLUMNS (60, 7), classes) of simulated images, the three classes in turn."""
    preset = simulator.preset("deeplense")
    truth = simulator.draw(preset, 2, range(60))
    table = truth.images
    counts = simulator.render(truth, preset).float()
    return counts, torch.tensor(table[list(FIT_COLUMNS)].to_numpy(float)), table["class"].tolist()


@pytest.fixture(scope="session")
def smooth():
    """(counts (300, 150, 150), truth (300, 7)) of images without substructure."""
    preset = simulator.preset("deeplense")
    truth = simulator.draw(preset, 11, range(300), "none")
    counts = simulator.render(truth, preset).float()
    return counts, torch.tensor(truth.images[list(FIT_COLUMNS)].to_numpy(float))
