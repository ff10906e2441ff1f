import pytest
import torch

from d4lens.errors import D4LensError
from d4lens.models.batch import LensBatch
from d4lens.models.channels import channel, stack


def test_all_are_zero_on_an_empty_sky():
    sky = LensBatch(torch.full((1, 4, 4), 10.0))
    for name in ("stretch", "log", "gradient"):
        assert channel(name, sky, 10.0).abs().max() < 1e-5, name


def test_values_by_hand():
    batch = LensBatch(torch.full((1, 3, 3), 46.0))
    assert channel("log", batch, 10.0)[0, 0, 0].item() == pytest.approx(1.526056)  # ln 4.6
    assert channel("stretch", batch, 10.0)[0, 0, 0].item() == pytest.approx(0.2 * (46.375**0.5 - 10.375**0.5))


def test_the_stretch_gives_equal_noise_on_faint_and_bright():
    rates = torch.tensor([10.0, 100.0, 1000.0])[:, None, None].expand(3, 200, 200)
    noise = channel("stretch", LensBatch(torch.poisson(rates)), 10.0).std((1, 2))
    assert torch.allclose(noise, torch.tensor(0.1), rtol=0.03)


def test_the_gradient_of_a_ramp():
    # Counts whose root rises by 5 a pixel along x and none along y: the stretch rises by 1.
    counts = (torch.arange(6.0) * 5 + 10).square().expand(6, 6) - 0.375
    inner = channel("gradient", LensBatch(counts[None]), 10.0)[0, :, 1:-1]
    assert torch.allclose(inner, torch.ones(6, 4), atol=1e-4)


def test_a_residual_beyond_twenty_sigma_is_clipped():
    batch = LensBatch(torch.zeros(1, 1, 2), residual=torch.tensor([[[-300.0, 3.0]]]))
    assert channel("residual", batch, 10.0).tolist() == [[[-20.0, 3.0]]]


def test_channels_stand_in_the_order_asked_for():
    batch = LensBatch(torch.rand(2, 3, 3) * 100, residual=torch.randn(2, 3, 3))
    both = stack(("residual", "log"), batch, 10.0)
    assert both.shape == (2, 2, 3, 3)
    assert torch.equal(both[:, 0], channel("residual", batch, 10.0))


def test_unknown_and_missing_channels_are_named():
    with pytest.raises(D4LensError, match="unknown channel 'glow'"):
        channel("glow", LensBatch(torch.zeros(1, 2, 2)), 10.0)
    with pytest.raises(D4LensError, match="run the macrofit stage"):
        channel("residual", LensBatch(torch.zeros(1, 2, 2)), 10.0)
