import pytest
import torch
from torch import nn

from d4lens.errors import D4LensError
from d4lens.lensing import d4
from d4lens.models.equivariant import EquivariantLayers, transform_fields
from d4lens.models.unet import InvariantBranch, Lift, PlainLayers, UNet, plain_of_equal_parameters, working_size


@pytest.mark.parametrize(("n", "size"), [(75, 76), (76, 76), (150, 152), (152, 152), (73, 76), (8, 8)])
def test_the_working_size_halves_twice(n, size):
    assert working_size(n, 3) == size
    assert Lift(PlainLayers(), n, 1, 1, levels=3)(torch.zeros(1, 1, n, n)).shape[-1] == size


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("n", [75, 76, 150, 152])
def test_maps_and_features_turn_with_the_image(n, dtype, bound):
    net = UNet(EquivariantLayers(), n, 2, 2, (1, 2, 2)).to(dtype)
    x = torch.randn(1, 2, n, n, dtype=dtype)
    maps, features, floor = net(x)
    assert maps.shape == (1, 2, n, n)
    assert features.shape == (1, 8, n, n)
    for g in d4.ELEMENTS if n < 100 else (1, 6):
        turned_maps, turned_features, turned_floor = net(d4.transform(x, g))
        assert (turned_maps - d4.transform(maps, g)).abs().max() < bound * maps.std()
        assert (turned_features - transform_fields(features, g)).abs().max() < bound * features.std()
        assert (turned_floor - transform_fields(floor, g)).abs().max() < bound * floor.std()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n", [20, 19])
def test_the_branch_s_vector_is_invariant(n, dtype, bound):
    branch = InvariantBranch(EquivariantLayers(), (2, 3, 4)).to(dtype)
    x = torch.randn(2, 16, n, n, dtype=dtype)
    vector = branch(x)
    assert vector.shape == (2, 8)
    for g in d4.ELEMENTS:
        assert (branch(transform_fields(x, g)) - vector).abs().max() < bound * vector.std()


def test_a_plain_network_does_not_turn_with_the_image():
    net = UNet(PlainLayers(), 12, 1, 1, (1, 2))
    x = torch.randn(1, 1, 12, 12)
    assert (net(d4.transform(x, 1))[0] - d4.transform(net(x)[0], 1)).abs().max() > 0.1 * net(x)[0].std()


@pytest.mark.parametrize("n", [9, 10, 12, 13, 14])
def test_pixels_of_the_maps_lie_on_those_of_the_image(n):
    """Lift and restore with the identity between them: the centre of mass of a spot stays where it is."""
    lift = Lift(PlainLayers(1), n, 1, 1, levels=3)
    k = lift.conv.kernel_size[0]
    with torch.no_grad():
        middle = slice(k // 2 - 1 + k % 2, k // 2 + 1)
        lift.conv.weight.zero_()[..., middle, middle] = 1.0
    image = torch.zeros(1, 1, n, n)
    image[..., 4, 5] = 1
    back = lift.restore(lift(image))[0, 0].detach()
    assert back.shape == (n, n)
    rows, columns = torch.meshgrid(torch.arange(n) * 1.0, torch.arange(n) * 1.0, indexing="ij")
    assert (back * rows).sum() / back.sum() == pytest.approx(4)
    assert (back * columns).sum() / back.sum() == pytest.approx(5)


def test_plain_rivals_have_equal_width_or_equal_parameters():
    fields = (2, 4, 8)
    ours = UNet(EquivariantLayers(), 75, 2, 2, fields)
    count = sum(p.numel() for p in ours.parameters())
    matched = plain_of_equal_parameters(ours, 75, 2, 2, fields)
    assert sum(p.numel() for p in matched.parameters()) == pytest.approx(count, rel=0.1)
    wide = UNet(PlainLayers(), 75, 2, 2, fields)
    widths = [module.out_channels for module in wide.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [16, 32, 64, 64, 16, 32, 2]


@pytest.mark.parametrize("fields", [(2,), (0, 2)])
def test_too_few_fields_are_refused(fields):
    with pytest.raises(D4LensError, match="at least two levels"):
        UNet(PlainLayers(), 12, 1, 1, fields)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(D4LensError, match="10 x 10 pixels were given to a network built for 12 x 12"):
        UNet(PlainLayers(), 12, 1, 1, (1, 2))(torch.zeros(1, 1, 10, 10))
