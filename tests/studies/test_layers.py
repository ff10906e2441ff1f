import pytest
import torch
from torch import nn

from d4lens.lensing import d4
from d4lens.studies.layers import blended, capture, layers_of, outputs, run_edited, turned

NETWORKS = ("d4lenspinn", "d4lenspinn_published", "resnet18", "d4cnn")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_put_back_changes_nothing_and_all_of_them_everything(name, fresh, small_pairs):
    network, (clean, corrupt) = fresh(name), small_pairs
    layers = layers_of(network)
    with torch.inference_mode():
        wanted, a_clean = capture(network, clean.batch, layers)
        before, a_corrupt = capture(network, corrupt.batch, layers)
        assert set(a_clean) == {layer.name for layer in layers}
        assert not torch.equal(wanted, before)
        for layer in layers:
            assert torch.equal(run_edited(network, corrupt.batch, {layer: blended(a_corrupt[layer.name])}), before), (
                layer.name
            )
        for chosen in ([x for x in layers if x.part == "input"], [x for x in layers if x.part != "logits"]):
            assert torch.equal(
                run_edited(network, corrupt.batch, {x: blended(a_clean[x.name]) for x in chosen}), wanted
            )
        assert torch.equal(network(corrupt.batch)["logits"], before)  # no hook is left


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_patch_leaves_untouched_need_not_be_computed(name, fresh, small_pairs):
    network, (clean, corrupt) = fresh(name), small_pairs
    layers = layers_of(network)
    with torch.inference_mode():
        _, donors = capture(network, clean.batch, layers)
        fixed = outputs(network, corrupt.batch, layers)
        for layer in layers:
            edits = {layer: blended(donors[layer.name])}
            short = run_edited(network, corrupt.batch, edits, {key: fixed[key] for key in layer.untouched})
            assert torch.equal(short, run_edited(network, corrupt.batch, edits)), layer.name


def test_every_part_of_the_physical_network_is_named(fresh):
    names = [layer.name for layer in layers_of(fresh("d4lenspinn"))]
    for wanted in ("unet.residual", "unet.floor", "convergence", "deflection", "source", "head.unexplained", "head.stem",
                   "invariants.logits", "logits"):  # fmt: skip
        assert wanted in names
    assert names.index("unet.up.1") < names.index("unet.up.0")  # in the order they are met


def test_a_mask_patches_only_its_pixels(fresh, small_pairs):
    network, (clean, corrupt) = fresh("d4lenspinn"), small_pairs
    layer = next(x for x in layers_of(network) if x.name == "convergence")
    with torch.inference_mode():
        _, donors = capture(network, clean.batch, [layer])
        _, own = capture(network, corrupt.batch, [layer])
        mask = torch.zeros(len(clean), 50, 50, dtype=torch.bool)
        mask[:, 10:20, 30:40] = True
        new = blended(donors[layer.name], mask)(own[layer.name])
    inner = slice(1, 51)  # the U-Net works on 52 pixels
    new, there, here = (x[:, 0, inner, inner] for x in (new, donors[layer.name], own[layer.name]))
    assert torch.equal(new[mask], there[mask])
    assert torch.equal(new[~mask], here[~mask])


def test_turning_by_all_eight_elements_and_back_is_exact(fresh, small_pairs):
    network = fresh("d4lenspinn")
    with torch.inference_mode():
        _, found = capture(network, small_pairs[0].batch, layers_of(network))
    for layer in layers_of(network):
        for g in d4.ELEMENTS:
            there = turned(layer, found[layer.name], g)
            assert torch.allclose(turned(layer, there, d4.inverse(g)), found[layer.name], atol=1e-6)


def test_a_network_of_another_kind_has_no_layers():
    with pytest.raises(TypeError, match="has no named layers"):
        layers_of(nn.Linear(2, 2))
