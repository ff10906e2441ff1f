"""The genuine images are the yardstick: the simulator's statistics against theirs, and proof that the test can fail."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from d4lens.classes import CLASSES
from d4lens.data.images import read_image, recover_counts
from d4lens.simulator import draw, preset, render

# benchmarks/ is no package.
_MEASURES = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "image_statistics.py"))
LEVELS, compare, statistics = (_MEASURES[name] for name in ("LEVELS", "compare", "statistics"))

N_SIMULATED = 300
# About 25 statistics, correlated: one in 200 sound simulators has a |z| above 4 or a p below 2e-4 among them.
LIMIT_Z, LIMIT_P = 4.0, 2e-4


@pytest.fixture(scope="module")
def genuine(real_samples):
    images = [read_image(path) for label in CLASSES for path in sorted((real_samples / label).glob("*.npy"))]
    counts = [recover_counts(image, sky=10.0) for image in images]
    assert all(c.is_counts for c in counts)
    return statistics(np.stack([c.k for c in counts]), 0.05, 10.0)


def simulated(overrides, change=lambda counts: counts):
    p = preset("deeplense", overrides)
    counts = render(draw(p, 12, range(N_SIMULATED)), p).numpy()
    return statistics(change(counts), 0.05, 10.0)


def failures(genuine, other):
    table = compare(genuine, other)
    assert len(table) >= 20
    return {name for name, row in table.items() if abs(row["z"]) > LIMIT_Z or row["p"] < LIMIT_P}


def test_simulated_images_have_the_statistics_of_genuine_ones(genuine):
    assert failures(genuine, simulated({})) == set()


def twice_poisson(counts):
    return np.random.default_rng(0).poisson(counts)


@pytest.mark.parametrize(
    ("overrides", "change", "gives_it_away"),
    [
        ({}, twice_poisson, "noise 0"),
        ({"sky": 15.0}, None, "sky_variance"),
        ({"sersic_amplitude": 140.0}, None, "peak"),
        ({"theta_E": [1.6, 2.2]}, None, "ring_radius"),
        ({"psf_sigma": 0.15}, None, "peak"),
        ({"sersic_R_e": 0.8}, None, "profile 12"),
    ],
)
def test_a_wrong_simulator_is_found_out(genuine, overrides, change, gives_it_away):
    other = simulated(overrides, *([change] if change else []))
    assert gives_it_away in failures(genuine, other)


def test_the_noise_of_the_genuine_images_is_poisson(genuine):
    """The measure of noise finds what was put in: 1 on a simulated sky and signal, 1 in the genuine images."""
    for sample in (genuine, simulated({})):
        assert np.nanmean(sample.noise, axis=0)[: len(LEVELS) - 1] == pytest.approx(1.0, abs=0.06)
