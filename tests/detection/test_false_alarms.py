import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from d4lens.detection import law, matched_filter, simulate_false_alarms
from d4lens.detection.false_alarms import FalseAlarms


def test_the_law_follows_independent_trials_far_beyond_their_number():
    # The highest of 300 independent values is known: P = 1 - (1 - Q(u))^300.
    rng = np.random.default_rng(1)
    found = law(rng.standard_normal((20_000, 300)).max(1))
    for level in (3.0, 4.0, 5.0):
        assert found.probability(level) == pytest.approx(-np.expm1(300 * np.log1p(-norm.sf(level))), rel=0.15)


def test_probabilities_fall_with_the_level_and_stay_within_0_and_1():
    levels = np.linspace(-5, 40, 200)
    p = FalseAlarms(12.0, 90.0).probability(levels)
    assert (np.diff(p) <= 0).all()
    assert ((p >= 0) & (p <= 1)).all()
    assert p[-1] < 1e-300


def test_probabilities_of_noise_are_uniform(images, lens, noise):
    _, counts, result = images
    image = matched_filter(counts[4], result.parameters[4], lens)
    alarms = simulate_false_alarms(image, counts[4])
    p = alarms.probability(image.highest(torch.randn((400, 75, 75), generator=noise)))
    assert kstest(p, "uniform").pvalue > 1e-3
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.04)


def test_the_same_image_gives_the_same_law_and_another_its_own_noise(images, lens):
    _, counts, result = images
    image = matched_filter(counts[4], result.parameters[4], lens)
    assert simulate_false_alarms(image, counts[4]) == simulate_false_alarms(image, counts[4])
    assert simulate_false_alarms(image, counts[4]) != simulate_false_alarms(image, counts[3])
