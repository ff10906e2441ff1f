import numpy as np
import pytest
import torch

from d4lens.studies import symmetry
from d4lens.studies.layers import layers_of


def broken(found, dtype):
    """Names of the layers that promise equivariance and miss it by more than rounding."""
    promised = ((layer, off) for layer, off in found.items() if layer.kind in symmetry.PROMISED)
    return [layer.name for layer, off in promised if not off <= symmetry.bound(dtype)]


@pytest.mark.parametrize("name", ["d4lenspinn", "d4lenspinn_published", "d4cnn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_layer_that_promises_to_turns_with_the_image_to_rounding(name, dtype, fresh, small_pairs):
    found = symmetry.equivariance_errors(fresh(name).to(dtype), small_pairs[0].rows(slice(0, 2)), dtype)
    assert broken(found, dtype) == []
    assert sum(layer.kind in symmetry.PROMISED for layer in found) > 5


def test_the_shipped_network_s_layers_do_too(shipped, shipped_pairs):
    found = symmetry.equivariance_errors(shipped[0], shipped_pairs[0].rows(slice(0, 2)), torch.float32)
    assert broken(found, torch.float32) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_broken_filter_is_found_where_it_stands(dtype, fresh, small_pairs):
    network = fresh("d4lenspinn").to(dtype)
    with torch.no_grad():
        network.unet.down[0].conv.weight[3, 2, 0, 1] += 1e-3
    found = symmetry.equivariance_errors(network, small_pairs[0].rows(slice(0, 2)), dtype)
    assert broken(found, dtype)[0] == "unet.down.0"


def test_the_heads_break_it_and_resnet_has_none(fresh, small_pairs):
    batch = small_pairs[0].rows(slice(0, 2))
    six = fresh("d4lenspinn_published", head_channels=("source", "alpha_x"))  # the component of a vector
    for network, alpha_x in ((six, True), (fresh("d4lenspinn_published"), False)):
        errors = {x.name: off for x, off in symmetry.equivariance_errors(network, batch, torch.float32).items()}
        assert ("head.alpha_x" in errors) == alpha_x
        assert errors["head.source"] < 1e-4 < errors.get("head.alpha_x", 1)
        assert errors["head.stem"] > 0.05
    errors = {x.name: off for x, off in symmetry.equivariance_errors(fresh("resnet18"), batch, torch.float32).items()}
    assert errors["stem"] > 0.05


def test_averaging_makes_any_network_invariant(fresh, lenses):
    logits = symmetry.orbit(fresh("resnet18"), [lenses.rows(slice(0, 12))])
    assert logits.shape == (8, 12, 3)
    averaged = symmetry.averaged(logits)
    assert symmetry.spread(logits).max() > 1e-3
    assert symmetry.spread(averaged).max() < 1e-6
    assert not symmetry.flipped(averaged).any()


def test_an_invariant_network_scores_alike_on_every_turned_set(fresh, lenses):
    logits = symmetry.orbit(fresh("d4cnn"), [lenses.batch])
    rows = symmetry.orbit_records("d4cnn", [logits], lenses.labels, 100, 1)
    aucs = [r["value"] for r in rows if r["quantity"] == "auc_macro"]
    assert len(aucs) == 9
    assert np.ptp(aucs) < 0.01
    spread = next(r["value"] for r in rows if r["quantity"] == "orbit_spread")
    assert spread < 1e-4


def test_the_study_tells_where_the_symmetry_breaks(fresh, small_pairs, lenses):
    network = fresh("d4lenspinn_published")
    batch = small_pairs[0].rows(slice(0, 2))
    found = {torch.float64: symmetry.equivariance_errors(network.double(), batch, torch.float64)}
    found[torch.float32] = symmetry.equivariance_errors(network.float(), batch, torch.float32)
    rows = symmetry.layer_records("d4lenspinn_published", "trained", found, 2)
    assert len(rows) == 2 * len(layers_of(network))
    rows += symmetry.orbit_records(
        "d4lenspinn_published", [symmetry.orbit(network, [lenses.rows(slice(0, 12))])], lenses.labels[:12], 100, 1
    )
    first, second = symmetry.summarise(rows).answers
    assert "first breaks at head.stem" in first
    assert "macro AUC" in second


def test_of_several_trainings_the_largest_error_counts_and_their_difference_widens_the_interval(fresh):
    layers = layers_of(fresh("resnet18"))[:2]
    found = symmetry.largest([dict(zip(layers, (0.1, 0.4))), dict(zip(layers, (0.3, 0.2)))])
    assert list(found.values()) == [0.3, 0.4]
    labels = np.arange(60) % 3
    steady = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).double().expand(8, 60, 3)
    turning = steady.clone()
    turning[1, 30:] = steady[1, 30:].roll(1, -1)  # half of the predictions change under one element

    def flips(*stacks):
        rows = symmetry.orbit_records("m", stacks, labels, 300, 1)
        return next(r for r in rows if r["quantity"] == "flipped" and r["view"] == "plain")

    assert flips(steady)["value"] == 0
    assert flips(steady)["ci_high"] > 0.05  # Wilson's, of 60 images
    both = flips(steady, turning)
    assert both["value"] == 0.25
    assert both["ci_high"] - both["ci_low"] > flips(turning)["ci_high"] - flips(turning)["ci_low"]
