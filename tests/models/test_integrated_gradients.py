import pytest
import torch
from torch import nn

from d4lens import models
from d4lens.models import integrated_gradients
from d4lens.models.batch import LensBatch
from d4lens.simulator import preset


class Linear(nn.Module):
    """Logits that are sums of the residual under fixed weights."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, batch):
        score = (batch.residual * self.weights).sum((1, 2))
        return {"logits": torch.stack([torch.zeros_like(score), score, 2 * score], 1)}


def test_integrated_gradients_of_a_line_are_weight_times_value(monkeypatch):
    residual = torch.linspace(-3, 3, 2 * 400).view(2, 20, 20)
    batch = LensBatch(torch.ones(2, 20, 20), residual=residual)
    monkeypatch.setattr(integrated_gradients, "maps_read", lambda _: ("residual",))
    monkeypatch.setattr(integrated_gradients.lensing, "convolve_psf", lambda image, _: image)
    weights = torch.linspace(-1, 1, 400).view(20, 20)
    for steps in (1, 5):
        found = integrated_gradients.attribute(
            Linear(weights), batch, batch.counts, torch.ones(2, dtype=torch.long), steps
        )
        assert torch.allclose(found, (weights * residual).abs(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "maps"),
    [("resnet18", ("counts",)), ("resnet18_residual", ("residual",)), ("d4lenspinn", ("residual", "significance"))],
)
def test_a_network_s_maps_are_those_it_reads(name, maps):
    assert integrated_gradients.maps_read(models.build(name, preset("deeplense").observation.binned(3))) == maps
