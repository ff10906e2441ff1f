import numpy as np
import pytest
import torch
from torch import nn

from d4lens.interpret import attribution


class Linear(nn.Module):
    """Logits that are sums of the residual under fixed weights."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, batch):
        score = (batch["residual"] * self.weights).sum((1, 2))
        return {"logits": torch.stack([torch.zeros_like(score), score, 2 * score], 1)}


def test_integrated_gradients_of_a_line_are_weight_times_value(small_pairs, monkeypatch):
    clean, _ = small_pairs
    monkeypatch.setattr(attribution, "maps_read", lambda _: ("residual",))
    monkeypatch.setattr(attribution.lensing, "convolve_psf", lambda image, _: image)
    weights = torch.linspace(-1, 1, 2500).view(50, 50)
    for steps in (1, 5):
        found = attribution.attribute(
            Linear(weights), clean.batch, clean.smooth, torch.ones(4, dtype=torch.long), steps
        )
        assert torch.allclose(found, (weights * clean.batch["residual"]).abs(), rtol=1e-4, atol=1e-5)


def test_the_highest_point_is_held_against_the_true_place(small_pairs):
    clean, _ = small_pairs
    near = (attribution.distance(clean) <= attribution.TOLERANCE).double()
    assert attribution.pointed(near, clean).all()
    assert not attribution.pointed(1 - near, clean).any()


def test_the_shipped_network_points_better_than_chance_and_the_centre(shipped, shipped_pairs):
    clean, _ = shipped_pairs
    hits = attribution.play(shipped[0], clean, 2, "integrated_gradients").mean()
    chance = {name: values.mean() for name, values in attribution.baselines(clean).items()}
    assert hits > chance["random_on_ring"] + 0.2
    assert hits > chance["centre"]
    assert chance["random"] < 0.1


@pytest.mark.parametrize(("name", "maps"), [("resnet18", ("counts",)), ("d4lenspinn", ("residual", "significance"))])
def test_a_network_s_maps_are_those_it_reads(name, maps, fresh):
    assert attribution.maps_read(fresh(name)) == maps


def test_the_study_holds_each_model_against_each_baseline(small_pairs):
    kinds = np.array([1, 2] * 20)
    rows = [
        *attribution.records("random", "baseline", np.full(40, 0.02), kinds, 100, 1),
        *attribution.records("d4lenspinn", "gradient", np.ones(40), kinds, 100, 1),
    ]
    study = attribution.study(rows, small_pairs[0].observation)
    assert "d4lenspinn, gradient: 1.00 [1.00, 1.00], above random of these." in study.answers
    assert [r["n"] for r in rows[:3]] == [40, 20, 20]
