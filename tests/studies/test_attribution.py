from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from d4lens.studies import attribution


class Bright(nn.Module):
    """Planted: its decision is the residual's weighted sum, so that patching and gradients say the same of every cell."""

    needs = ("counts", "residual")

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, batch):
        signal = (batch.need("residual") * self.weights).sum((1, 2))
        return {"logits": torch.stack([torch.zeros_like(signal), signal, signal], 1)}


def test_the_highest_point_is_held_against_the_true_place(small_pairs):
    clean, _ = small_pairs
    near = (attribution.distance(clean) <= attribution.TOLERANCE).double()
    assert attribution.pointed(near, clean).all()
    assert not attribution.pointed(1 - near, clean).any()


def test_the_shipped_network_points_better_than_chance_and_the_centre(shipped, shipped_pairs):
    clean, _ = shipped_pairs
    hits = attribution.play(shipped[0], clean, 2, "integrated_gradients").mean()
    chance = {name: values.mean() for name, values in attribution.baseline_hits(clean).items()}
    assert hits > chance["random_on_ring"] + 0.2
    assert hits > chance["centre"]
    assert chance["random"] < 0.1


def test_the_study_holds_each_arm_against_each_baseline(small_pairs):
    kinds = np.array([1, 2] * 20)
    rows = [
        *attribution.records("random", "baseline", [np.full(40, 0.02)], kinds, 100, 1),
        *attribution.records("d4lenspinn", "gradient", [np.ones(40)], kinds, 100, 1),
    ]
    found = attribution.summarise(rows, small_pairs[0].observation)
    assert "d4lenspinn, gradient: 1.00 [0.91, 1.00], above random of these." in found.answers
    assert [r["n"] for r in rows[:3]] == [40, 20, 20]


def test_the_cells_tile_the_square_around_the_lens(small):
    masks = attribution.cell_masks(small)
    assert masks.shape == (25, 50, 50)
    assert (masks.sum(0) <= 1).all()
    assert masks.sum() == pytest.approx((2 * attribution.HALF_WIDTH / small.pixel_scale) ** 2, rel=0.05)


def test_ranks_are_those_of_scipy(small_pairs):
    a, b = np.random.default_rng(1).normal(size=(2, 3, 25)).round(1)
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b)]
    assert attribution.spearman(a, b) == pytest.approx(expected)
    assert np.isnan(attribution.spearman(np.ones((1, 25)), b[:1])).all()


def test_attribution_and_patching_agree_where_the_answer_is_known(small_pairs, small):
    """A network of positive pixels: the cell that moves most is the one with most attributed. Null: pixels it never reads."""
    clean, _ = small_pairs
    masks = attribution.cell_masks(small).float()
    weights = (masks * 2.0 ** torch.arange(25)[:, None, None]).sum(0)  # each cell counts twice the one before
    positive = clean.batch.residual.abs() + 1.0
    planted = attribution.Samples(small, replace(clean.batch, residual=positive), clean.smooth, clean.truth)
    found = attribution.agreement(Bright(weights), planted, 4, 2)
    assert found["integrated_gradients"].min() > 0.9
    assert found["difference"].mean() < 0.6  # positive as well: cells differ in size of their maps
    rows = attribution.agreement_records("m", "trained", [found, found], 200, 1)
    assert rows[0]["value"] == pytest.approx(found["integrated_gradients"].mean())
    assert rows[0]["n"] == 8
    nothing = attribution.agreement(Bright(0 * weights), planted, 4, 2)
    (row,) = [
        r for r in attribution.agreement_records("m", "trained", [nothing], 200, 1) if r["method"] == "difference"
    ]
    assert row["value"] is None
