from collections.abc import Callable

import pytest
import torch
from torch import nn

from d4lens import models
from d4lens.inference.pipeline import default_weights
from d4lens.models.averaging import exported
from d4lens.observation import Observation
from d4lens.simulator import preset
from d4lens.studies import networks, samples

SMALL = preset("deeplense").observation.binned(3)
"""The preset's images binned 3 x 3: a quarter of the time."""


@pytest.fixture(scope="session")
def small() -> Observation:
    return SMALL


@pytest.fixture(scope="session")
def fresh() -> Callable[..., nn.Module]:
    """An untrained network by name, of the small images unless told otherwise."""

    def make(name: str, observation: Observation = SMALL, seed: int = 0, **options: object) -> nn.Module:
        return networks.untrained(name, observation, seed, **options)

    return make


@pytest.fixture(scope="session")
def shipped() -> tuple[nn.Module, Observation]:
    """The trained network of the package, exported, and its images."""
    network, config = models.load(default_weights())
    return exported(network), Observation.from_dict(config["observation"])


@pytest.fixture(scope="session")
def small_pairs() -> tuple[samples.Samples, samples.Samples]:
    return samples.pairs(4, 11, SMALL)


@pytest.fixture(scope="session")
def shipped_pairs(shipped) -> tuple[samples.Samples, samples.Samples]:
    return samples.pairs(12, 12, shipped[1])


@pytest.fixture(scope="session")
def lenses() -> samples.Samples:
    """Ninety small lenses of all classes."""
    return samples.simulate_samples(90, 13, SMALL)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small arrays: threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
