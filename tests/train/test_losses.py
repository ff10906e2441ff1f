import math
from dataclasses import replace

import pytest
import torch

from d4lens.lensing import grid
from d4lens.models.batch import LensBatch
from d4lens.observation import Observation
from d4lens.train import losses

OBSERVATION = Observation(8, 0.5, 0.1, 40.0)
NO_TRUTH = LensBatch(torch.zeros(1, 8, 8))


def spot():
    """kappa of 3 in one pixel of 8 x 8, well inside."""
    kappa = torch.zeros(1, 8, 8, dtype=torch.float64)
    kappa[0, 2, 5] = 3.0
    return kappa


def test_total_variation_counts_the_steps_around_a_spot():
    # Two steps of 3 along x over 8 x 7 differences, two along y, per half arcsec.
    assert losses.total_variation({"kappa": spot()}, NO_TRUTH, OBSERVATION).item() == pytest.approx(2 * 6 / 56 / 0.5)


def test_sparsity_is_the_mean_whatever_the_sign():
    assert losses.sparsity({"kappa": -spot()}, NO_TRUTH, OBSERVATION).item() == pytest.approx(3 / 64)


def test_the_centre_penalty_grows_with_the_square_of_the_distance():
    # The pixel's centre is at (0.75, -0.75) arcsec, the half side is 2 arcsec.
    assert losses.off_centre({"kappa": spot()}, NO_TRUTH, OBSERVATION).item() == pytest.approx(
        3 * (2 * 0.75**2) / 4 / 64
    )


def test_the_poisson_residual_vanishes_on_a_solution_and_counts_what_is_amiss():
    x, y = grid(8, 0.5, dtype=torch.float64)
    psi = (x**2 + 2 * x * y + 0.5 * y**2)[None]  # five points are exact on it: lap = 2 + 1
    right = torch.full((1, 8, 8), 1.5, dtype=torch.float64)
    assert losses.poisson_equation({"psi": psi, "kappa": right}, NO_TRUTH, OBSERVATION).item() == pytest.approx(
        0, abs=1e-20
    )
    assert losses.poisson_equation({"psi": psi, "kappa": right + 0.5}, NO_TRUTH, OBSERVATION).item() == pytest.approx(
        1.0
    )


def test_consistency_is_half_the_square_for_noise_and_linear_for_blunders():
    small, large = torch.full((1, 4, 4), 0.01, dtype=torch.float64), torch.full((1, 4, 4), -100.0)
    assert losses.consistency({"unexplained": small}, NO_TRUTH, OBSERVATION).item() == pytest.approx(0.5e-4, rel=1e-3)
    assert losses.consistency({"unexplained": large}, NO_TRUTH, OBSERVATION).item() == pytest.approx(
        math.sqrt(10001) - 1
    )


def test_convergence_is_in_units_of_one_detectable_mass():
    out, truth = {"kappa": spot()}, replace(NO_TRUTH, kappa=spot() + 0.05)
    assert losses.convergence(out, truth, OBSERVATION).item() == pytest.approx(1.0)


def test_the_whole_lens_is_compared_in_the_logarithm():
    truth = torch.full((1, 8, 8), 0.49, dtype=torch.float64)
    out = {"kappa": math.e * (truth + 0.01) - 0.01}
    assert losses.log_convergence(out, replace(NO_TRUTH, kappa=truth), OBSERVATION).item() == pytest.approx(1.0)


def test_only_losses_with_inputs_are_computed_and_only_weighted_ones_teach():
    kappa = spot().requires_grad_()
    weights = {**dict.fromkeys(losses.PHYSICS, 1.0), "sparsity": 0.0}
    values = losses.physics(tuple(losses.PHYSICS), weights, {"kappa": kappa}, NO_TRUTH, OBSERVATION)
    assert set(values) == {"total_variation", "sparsity", "centre"}
    assert not values["sparsity"].requires_grad
    assert values["sparsity"].item() == pytest.approx(3 / 64)
    assert values["centre"].requires_grad
    with_truth = losses.physics(
        ("convergence",), weights, {"kappa": kappa}, replace(NO_TRUTH, kappa=spot()), OBSERVATION
    )
    assert with_truth["convergence"].item() == 0


def test_every_weight_of_the_parameters_has_its_loss():
    from d4lens.params import LossWeights

    assert set(LossWeights.model_fields) == set(losses.PHYSICS)
