import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm, poisson

from d4lens import simulator
from d4lens.errors import PhysicsError
from d4lens.macrofit import FIT_COLUMNS, fit_smooth_lens, preset_model
from d4lens.studies import physical_limit


@pytest.fixture(scope="module")
def lens():
    return preset_model("deeplense", binning=2)


@pytest.fixture(scope="module")
def preset():
    return simulator.preset("deeplense")


def truth_columns(truth):
    return torch.tensor(truth.images[list(FIT_COLUMNS)].to_numpy(float))


def test_the_deviance_is_twice_the_log_likelihood_ratio():
    counts, expected = torch.tensor([[[3.0, 0.0], [7.0, 2.0]]]), torch.tensor([[[2.0, 1.0], [7.0, 4.0]]])
    k, m = counts[0].numpy(), expected[0].numpy()
    ratio = 2 * (poisson.logpmf(k, np.maximum(k, 1e-12)) - poisson.logpmf(k, m)).sum()
    assert physical_limit.poisson_deviance(counts, expected).item() == pytest.approx(ratio, rel=1e-6)


def test_no_substructure_gains_nothing(preset, lens):
    truth = simulator.draw(preset, 21, range(8), "none")
    mean = physical_limit.mean_counts(truth, preset, 2)
    assert physical_limit.gain(mean, lens).max() < 0.05


def test_the_gain_grows_with_the_mass_as_its_square_at_first(preset, lens):
    masses = np.array([1e8, 2e8, 4e8])
    lensed = []
    for mass in masses:
        truth = physical_limit.one_subhalo(preset, 22, [mass] * 6, [1.0] * 6, np.linspace(0, 2 * math.pi, 6, False))
        mean = physical_limit.mean_counts(truth, preset, 2)
        lensed.append(physical_limit.gain(mean, lens, truth_columns(truth)))
    small, middle, large = lensed
    assert (small < middle).all()
    assert (middle < large).all()
    np.testing.assert_allclose(np.median(middle / small), 4, rtol=0.2)


def test_the_gain_measured_in_noise_is_the_one_expected(preset, lens):
    truth = physical_limit.one_subhalo(preset, 23, [4e9] * 40, [1.0] * 40, np.linspace(0, 2 * math.pi, 40))
    counts = torch.from_numpy(simulator.render(truth, preset).numpy().reshape(-1, 75, 2, 75, 2).sum((2, 4)))
    mean = physical_limit.mean_counts(truth, preset, 2)
    result = fit_smooth_lens(counts, lens)
    expected = physical_limit.gain(mean, lens, result.parameters)
    measured = physical_limit.measured_gain(counts, result.model_counts, mean, len(lens.free))
    pull = (measured - expected) / np.sqrt(4 * expected + 2 * len(lens.free))
    assert abs(pull.mean()) < 4 / math.sqrt(len(pull))
    assert 0.7 < pull.std() < 1.4


def test_the_ideal_curve_is_that_of_a_matched_filter():
    """A template in white noise, filtered 20,000 times, against the closed form."""
    rng, template, rate = np.random.default_rng(4), np.sin(np.arange(40.0)), 0.01
    for strength in (0.0, 0.2, 0.5):
        gained = strength**2 * (template @ template)
        data = strength * template + rng.normal(size=(20_000, 40))
        statistic = data @ template / np.sqrt(template @ template)
        found = (statistic > norm.isf(rate)).mean()
        expected = physical_limit.ideal_rate(gained, rate)
        assert found == pytest.approx(float(expected), abs=4 * math.sqrt(expected * (1 - expected) / 20_000))


@pytest.mark.parametrize("rate", [0.0, 1.0, math.nan])
def test_a_false_positive_rate_lies_between_0_and_1(rate):
    with pytest.raises(PhysicsError, match="false_positive_rate"):
        physical_limit.ideal_rate([1.0], rate)


def test_one_subhalo_sits_where_it_is_put_and_weighs_what_it_should(preset):
    truth = physical_limit.one_subhalo(preset, 24, [1e9, 4e9], [1.0, 0.5], [0.0, math.pi / 2])
    lens, halo = truth.images, truth.subhalos
    theta_E = lens["theta_E"].to_numpy()
    np.testing.assert_allclose(halo["x"], [theta_E[0], 0], atol=1e-12)
    np.testing.assert_allclose(halo["y"], [0, theta_E[1] / 2], atol=1e-12)
    np.testing.assert_allclose((halo["theta_E"] / theta_E) ** 2, [1e-3, 4e-3])
    assert lens["n_subhalos"].tolist() == [1, 1]
    smooth = simulator.draw(preset, 24, range(2), "none", "val").images
    pd.testing.assert_series_equal(lens["theta_E"], smooth["theta_E"])


def test_every_cell_of_the_grid_gets_its_images_and_the_seed_decides_them():
    edges = [1e8, 1e9, 1e10], [0.0, 1.0, 3.0]
    masses, radii, azimuths = physical_limit.grid_of(*edges, 5, 1)
    table = physical_limit.rates(masses, radii, {"a": masses > 1e9}, *edges)
    assert table["images"].tolist() == [5, 5, 5, 5]
    assert table["rate"].tolist() == [0, 0, 1, 1]
    assert ((azimuths >= 0) & (azimuths < 2 * math.pi)).all()
    np.testing.assert_array_equal(physical_limit.grid_of(*edges, 5, 1)[0], masses)
    assert (physical_limit.grid_of(*edges, 5, 2)[0] != masses).all()


def test_the_half_mass_is_where_the_rate_crosses_one_half():
    edges = [1e8, 1e9, 1e10, 1e11], [0.9, 1.1]
    masses = np.repeat([3e8, 3e9, 3e10], 10)
    found = np.concatenate([np.zeros(10), np.r_[np.ones(3), np.zeros(7)], np.r_[np.ones(7), np.zeros(3)]])
    table = physical_limit.rates(masses, np.ones(30), {"a": found.astype(bool), "b": np.zeros(30, bool)}, *edges)
    assert physical_limit.half_mass(table, "a", 0.9, 1.1) == pytest.approx(10 ** ((9.5 + 10.5) / 2))
    assert math.isnan(physical_limit.half_mass(table, "b", 0.9, 1.1))


def test_the_curve_counts_each_image_once_in_its_bin():
    gained = np.array([0.0, 0.5, 4.1, 17.0, 1e5])
    detected = np.array([False, False, True, False, True])
    table = physical_limit.curve(gained, {"a": detected}, physical_limit.ideal_rate(gained, 0.01))
    mine = table[table["arm"] == "a"]
    assert mine["images"].sum() == 5
    assert mine.set_index("sigma_low")["rate"].to_dict() == {0.0: 0, 2.0: 1, 4.0: 0, 50.0: 1}


def test_rows_of_keeps_each_image_s_masses(preset):
    truth = simulator.draw(preset, 25, range(9))
    part = truth.rows(np.array([7, 1]))
    assert part.images["path"].tolist() == truth.images["path"].iloc[[7, 1]].tolist()
    np.testing.assert_array_equal(simulator.render(part, preset)[0], simulator.render(truth, preset)[7])
