import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from d4lens.studies import patching


def parameters(**changed):
    given = {"arms": ["m"], "pairs": 12, "controls": 12, "min_difference": 1.0, "least_pairs": 12, "least_auc": 0.8}
    return patching.Parameters(**given | {"margin": 0.1, "bootstrap": 200, "seed": 1} | changed)


@pytest.fixture(scope="module")
def effects(shipped, shipped_pairs):
    return patching.measure_effects(shipped[0], *shipped_pairs, controls=12)


def test_the_exact_controls_are_exact(effects):
    assert effects.largest_self == 0
    assert np.array_equal(effects.all_layers, effects.clean)
    for quantity in ("denoising", "noising"):
        assert np.array_equal(patching.recovered(effects, quantity, "logits", 1.0), np.ones(12))


def test_the_two_routes_to_the_logits_add_up(effects):
    head, invariants = (
        patching.recovered(effects, "denoising", f"{route}.logits", 1.0) for route in ("head", "invariants")
    )
    assert np.allclose(head + invariants, 1, atol=1e-4)


def test_the_trained_network_recovers_by_its_own_donor_and_not_by_another_image_without_substructure(effects):
    own = patching.recovered(effects, "denoising", "unet.lift", 1.0)
    other = patching.recovered(effects, "same_class_donor", "unet.lift", 1.0)
    assert own.mean() > 0.8
    assert abs(other.mean()) < 0.2
    assert patching.p_value([own - other], 1000, 1) < 0.01


def test_the_substructure_s_place_gives_back_more_than_the_place_opposite(effects):
    around, opposite = (
        patching.recovered(effects, "maps_of_the_fit", name, 1.0).mean() for name in ("substructure", "mirrored")
    )
    assert around > opposite + 0.1


def test_untrained_networks_differences_scatter_about_zero_where_the_trained_one_s_do_not(
    effects, fresh, shipped, shipped_pairs
):
    """The random-initialisation control: no sign is common to the seeds, whereas all trained pairs have one."""
    means = []
    for seed in range(6):
        found = patching.measure_effects(
            fresh("d4cnn", shipped[1], seed, channels=["residual", "significance"]),
            *shipped_pairs,
            2,
            untrained=True,
        )
        means.append((found.clean - found.corrupt).mean())
    # a trained network's difference has one sign, seed by seed; six fair coins agree once in 32, and these are fixed
    assert 0 < sum(mean > 0 for mean in means) < 6
    assert ((effects.clean - effects.corrupt) > 1).all()


def test_pairs_whose_logits_hardly_differ_are_left_out_and_counted(effects):
    share = patching.recovered(effects, "denoising", "unet.lift", 1e6)
    assert np.isnan(share).all()
    found = patching.summarise({"m": [effects]}, {}, parameters(min_difference=1e6))
    (row,) = [r for r in found.records if r["quantity"] == "excluded_pairs"]
    assert (row["value"], row["n"]) == (12, 12)
    assert "there is no decision to locate" in found.answers[0]


def test_the_regions_do_not_overlap_where_they_must_not(shipped_pairs):
    masks = patching.regions(shipped_pairs[0])
    assert not (masks["substructure"] & masks["mirrored"]).any()
    assert torch.equal(masks["elsewhere"], ~(masks["ring"] | masks["substructure"]))


def test_intervals_hold_the_mean_and_need_ten_values():
    values = np.random.default_rng(1).normal(0.4, 0.1, 50)
    mean, low, high, n = patching.mean_interval([values, values + 0.02], 500, 1)
    assert low < mean < high
    assert (n, round(mean, 6)) == (100, round(values.mean() + 0.01, 6))
    assert np.isnan(patching.mean_interval([values[:9]], 500, 1)[0])


def test_a_layer_that_carries_nothing_is_shown_to_and_one_that_carries_is_not():
    """For normal values the bound is that of the 90 % interval, the mean and 1.645 standard errors of it."""
    values = np.random.default_rng(2).normal(0.0, 0.1, 400)
    values += 0.002 - values.mean()
    expected = 0.002 + 1.645 * values.std() / 20
    assert patching.equivalence_bound([values], 20000, 1) == pytest.approx(expected, rel=0.05)
    assert 0.3 < patching.equivalence_bound([values + 0.3], 1000, 1) < 0.32
    assert patching.equivalence_bound([values[:9]], 1000, 1) == np.inf


def test_few_pairs_and_a_network_that_cannot_tell_them_apart_make_no_claim(effects):
    few = patching.summarise({"m": [effects]}, {}, parameters(least_pairs=13))
    assert {r["claim"] for r in few.records if "claim" in r} == {"no claim: 12 pairs, fewer than 13"}
    assert "no claim: 12 pairs" in few.answers[0]
    assert "restore" not in few.answers[0]
    chance = replace(effects, corrupt=np.roll(effects.clean, 1) + 5.0, clean=effects.clean)
    unable = patching.summarise({"m": [chance]}, {}, parameters(least_pairs=1, min_difference=1e-9))
    assert all(r["claim"].startswith("no claim: AUC 0.") for r in unable.records if "claim" in r)


def test_how_well_the_pairs_are_told_apart_is_the_auc_of_their_logits(effects):
    near = replace(effects, corrupt=effects.clean + np.random.default_rng(3).normal(-2, 4, 12))
    value, low, high, n = patching.auc([near], 500, 1)
    truth = np.repeat([1, 0], 12)
    assert value == pytest.approx(roc_auc_score(truth, np.r_[near.clean, near.corrupt]))
    assert low < value < high
    assert n == 24


def test_trainings_that_differ_widen_the_interval(effects):
    other = replace(effects, patched={key: 0.5 * values for key, values in effects.patched.items()})
    widths = []
    for several in ([effects], [effects, effects], [effects, other]):
        shares = [patching.recovered(e, "denoising", "logits", 1.0) for e in several]
        low, high = patching.mean_interval(shares, 1000, 1)[1:3]
        widths.append(high - low)
    assert widths[0] == widths[1] == 0
    assert widths[2] > 0.1


def test_a_path_leads_to_the_one_head_input_that_is_listened_to(fresh, small_pairs):
    """Planted: a head deaf to all its channels but kappa. Null: a channel that does not come from the U-Net."""
    network = fresh("d4lenspinn_published")
    deaf = [i for i, name in enumerate(network.head_channels) if name != "kappa"]
    with torch.no_grad():
        network.head.conv_stem.weight[:, deaf] = 0
    found = patching.measure_effects(network, *small_pairs, controls=4)
    moved = {name: values - found.corrupt for (kind, name), values in found.patched.items() if kind == "path"}
    assert np.abs(moved["head.kappa"]).min() > 0
    assert np.array_equal(moved["head.kappa"], moved["head"])
    assert all(not moved[f"head.{network.head_channels[i]}"].any() for i in deaf)
    heard = patching.measure_effects(fresh("d4lenspinn_published"), *small_pairs, controls=4)
    moved = {name: values - heard.corrupt for (kind, name), values in heard.patched.items() if kind == "path"}
    assert not moved["head.stretch"].any()
    assert np.abs(moved["head.source"]).min() > 0
    assert np.allclose(moved["head"], moved["unet"], atol=1e-6)  # this network has no other way


def test_the_study_names_its_controls_and_corrects_for_the_layers(effects):
    found = patching.summarise({"d4lenspinn": [effects]}, {"d4lenspinn": [effects]}, parameters(bootstrap=2000))
    quantities = {r["quantity"] for r in found.records}
    assert {"self_patch", "all_layers", "same_class_donor", "shuffled_donor", "auc", "p_holm", "path"} <= quantities
    assert set(patching.WIRING.values()) <= quantities
    claims = {r["layer"]: r["claim"] for r in found.records if "claim" in r}
    holm = {r["layer"]: r["value"] for r in found.records if r["quantity"] == "p_holm"}
    assert set(holm) == {layer for layer, claim in claims.items() if claim != "nothing"}
    assert 0 < len(holm) < len(effects.layers)
    assert claims["unet.lift"] == "carries"
    assert claims["head.kappa"] == "nothing"
    assert min(holm.values()) >= 2 / 2001 * len(effects.layers) * 0.99


def test_every_share_that_is_claimed_stands_beside_the_untrained_one(effects):
    (answer,) = patching.summarise({"d4lenspinn": [effects]}, {"d4lenspinn": [effects]}, parameters()).answers
    shares = re.findall(r"\d\.\d\d \[[^]]*\](?! \(untrained)", answer)
    assert len(shares) == answer.count("(untrained")  # each untrained one itself, and no other
    assert "The wiring alone gives" in answer or "do not decide" in answer
