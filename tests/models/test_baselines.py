import pytest
import torch

from d4lens.lensing import d4
from d4lens.models.baselines import D4CNN, ResNet
from d4lens.models.batch import LensBatch


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("n", [75, 76])
def test_the_equivariant_cnn_gives_all_eight_views_the_same_logits(observation, batch, n, dtype, bound):
    model = D4CNN(observation(n), ("stretch", "residual"), fields=(1, 2, 2, 3)).to(dtype)
    lenses = batch(n, 3, dtype)
    for _ in range(2):
        logits = model(lenses)["logits"].double()
        for g in d4.ELEMENTS:
            assert (model(lenses.turned(g))["logits"] - logits).abs().max() < bound
        model.eval()
    assert logits.std(0).min() > 10 * bound  # and yet it tells the images apart


def test_the_equivariant_cnn_is_small(observation):
    assert 0.01e6 < sum(p.numel() for p in D4CNN(observation(75)).parameters()) < 0.03e6


def test_export_needs_no_escnn(observation, batch):
    model = D4CNN(observation(33), fields=(1, 2, 2))
    lenses = batch(33, 4)
    model(lenses)
    plain = model.export()
    assert not any("escnn" in type(module).__module__ for module in plain.modules())
    assert torch.allclose(plain(lenses)["logits"], model.eval()(lenses)["logits"], atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "needs"), [(("stretch",), ("counts",)), (("stretch", "residual"), ("counts", "residual"))]
)
def test_the_resnet_reads_what_it_says_it_needs(observation, batch, channels, needs):
    model = ResNet(observation(33), channels)
    assert model.needs == needs
    lenses = batch(33, 2)
    assert model(LensBatch(**{name: getattr(lenses, name) for name in needs}))["logits"].shape == (2, 3)
