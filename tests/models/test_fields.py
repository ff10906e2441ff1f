import pytest
import torch
from torch import nn

from d4lens import models
from d4lens.models.averaging import exported
from d4lens.models.equivariant import EquivariantConv, EquivariantLayers
from d4lens.models.fields import FieldNorm, without_escnn
from d4lens.models.unet import ExportedLayers


def reference(x, norm):
    """Batch normalisation over a field's eight channels, by torch's own layer on a view."""
    batch, _, height, width = x.shape
    torch_norm = nn.BatchNorm2d(len(norm.weight), eps=norm.eps).to(x.dtype)
    with torch.no_grad():
        torch_norm.weight.copy_(norm.weight)
        torch_norm.bias.copy_(norm.bias)
    return torch_norm(x.view(batch, -1, 8 * height, width)).view(x.shape), torch_norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_field_norm_is_batch_norm_with_shared_moments(layout):
    norm = FieldNorm(3).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x = (5 + 3 * torch.randn(4, 24, 6, 6, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(4, 24, 6, 6, dtype=torch.float64)
    expected, torch_norm = reference(x, norm)
    y = norm(x.contiguous(memory_format=layout))
    assert torch.allclose(y, expected, atol=1e-10)
    ours = torch.autograd.grad((y * weights).sum(), (x, norm.weight, norm.bias))
    theirs = torch.autograd.grad((expected * weights).sum(), (x, torch_norm.weight, torch_norm.bias))
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-9)
    assert torch.allclose(norm.running_mean, 0.1 * x.view(4, 3, -1).mean((0, 2)))
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * x.view(4, 3, -1).transpose(0, 1).reshape(3, -1).var(1, False))


def test_field_norm_takes_bfloat16_as_autocast_hands_it():
    norm = FieldNorm(2)
    x = (3 + torch.randn(4, 16, 8, 8)).requires_grad_()
    y = norm(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), norm(x), atol=0.05)
    y.float().square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_exported_layers_are_plain_torch_and_compute_the_same():
    net = nn.Sequential(EquivariantConv(scalars_in=1, fields_out=2, kernel_size=4, padding=2), FieldNorm(2))
    net.append(EquivariantConv(fields_in=2, scalars_out=2)).double()
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    for _ in range(3):
        net(x)  # moves the running moments away from zero and one
    plain = without_escnn(net)
    assert net.training
    assert not any("escnn" in type(module).__module__ for module in plain.modules())
    assert torch.allclose(plain(x), net.eval()(x), atol=1e-12)


def test_a_network_built_of_exported_layers_takes_an_exported_ones_weights(observation, batch):
    grid = observation(33)
    net = models.build("d4lenspinn", grid).eval()
    plain = models.build("d4lenspinn", grid, unet_kind="exported").eval()
    plain.load_state_dict(exported(net).state_dict())
    with torch.no_grad():
        assert torch.allclose(plain(batch(33))["logits"], net(batch(33))["logits"], atol=1e-5)


def test_exported_layers_count_as_equivariant_ones_do():
    ours, theirs = ExportedLayers(), EquivariantLayers()
    x = torch.randn(2, 24, 6, 6)
    assert ours.channels(3) == theirs.channels(3)
    assert ours.summary_width(3) == theirs.summary_width(3)
    assert torch.equal(ours.summary(x), theirs.summary(x))
