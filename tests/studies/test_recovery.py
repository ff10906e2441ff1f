import math

import numpy as np
import pytest
import torch
from torch import nn

from d4lens import simulator
from d4lens.models.batch import LensBatch
from d4lens.studies import recovery


@pytest.fixture(scope="module")
def true():
    preset = simulator.preset("deeplense")
    truth = simulator.draw(preset, 5, range(24), "vort")
    return simulator.substructure_convergence(truth, preset.observation.binned(2)).numpy(), truth


def test_a_map_correlates_with_itself_and_not_with_its_pixels_shuffled(true):
    kappa = true[0]
    np.testing.assert_allclose(recovery.correlations(3 * kappa + 1, kappa), 1, rtol=1e-6)
    np.testing.assert_allclose(recovery.correlations(-kappa, kappa), -1, rtol=1e-6)
    flat = kappa.reshape(len(kappa), -1)
    shuffled = np.random.default_rng(0).permuted(flat, axis=1).reshape(kappa.shape)
    assert abs(recovery.correlations(shuffled, kappa)).max() < 0.08
    assert abs(recovery.pooled_correlation(shuffled, kappa)) < 0.02
    assert recovery.pooled_correlation(kappa, kappa) == pytest.approx(1)


def test_a_constant_map_has_no_correlation(true):
    assert np.isnan(recovery.correlations(np.zeros_like(true[0]), true[0])).all()


def test_the_convergence_of_a_rod_sums_to_its_mass(true):
    kappa, truth = true
    inside = np.hypot(truth.images["rod_x"], truth.images["rod_y"]) + truth.images["rod_half_length"] < 3
    expected = math.pi * truth.images["rod_theta_E"] ** 2
    assert inside.sum() > 5
    np.testing.assert_allclose(recovery.kappa_mass(kappa, 0.1)[inside], expected[inside], rtol=1e-3)


def test_what_a_network_takes_away_is_no_mass():
    assert recovery.kappa_mass(np.array([[[2.0, -5.0], [1.0, 0.0]]]), 0.1) == pytest.approx(0.03)


def test_a_power_law_is_found_and_a_useless_estimate_ignored():
    rng = np.random.default_rng(2)
    estimates = rng.uniform(0.1, 2, (200, 2))
    mass = 0.3 * estimates[:, 0] ** 0.7
    scale = recovery.Scale.fitted(estimates, mass)
    np.testing.assert_allclose(scale.slopes, [0.7, 0], atol=1e-9)
    np.testing.assert_allclose(scale(estimates), mass, rtol=1e-9)


@pytest.mark.parametrize("k", [0, 1])
def test_without_an_estimate_or_images_the_mass_is_the_median(k):
    mass = np.array([1.0, 3.0, 2.0])
    scale = recovery.Scale.fitted(np.ones((3, k)), mass)
    np.testing.assert_allclose(scale(np.ones((5, k))), 2.0)


def test_the_median_leaves_out_what_is_undefined_and_its_interval_holds_it():
    values = np.concatenate([np.random.default_rng(3).normal(5, 1, 400), [math.nan]])
    median, low, high = recovery.median_interval(values, 300, 1)
    assert median == pytest.approx(np.median(values[:-1]))
    assert low < median < high
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.4)
    assert all(map(math.isnan, recovery.median_interval(np.array([math.nan]), 10, 1)))


def test_maps_keep_the_order_of_the_batches():
    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, batch):
            return {"kappa": 2 * batch.kappa * self.weight}

    def batch(first):
        maps = torch.arange(first, first + 2.0)[:, None, None].expand(2, 4, 4)
        fit = torch.arange(first, first + 2.0)[:, None].expand(2, 7)
        label = torch.zeros(2, dtype=torch.int64)
        return LensBatch(maps, residual=maps, significance=maps, fit=fit, label=label, kappa=maps)

    found = recovery.maps(Echo(), [batch(1), batch(3)], [1.0, math.nan, 2.0, math.nan])
    assert found.predicted[:, 0, 0].tolist() == [2, 4, 6, 8]
    assert found.theta_E.tolist() == [1, 2, 3, 4]
    assert found.chi2.tolist() == [1, 4, 9, 16]
    np.testing.assert_allclose(found.rods[[0, 2]], [math.pi, 4 * math.pi])
