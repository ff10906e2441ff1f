from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from torch import nn

from d4lens.lensing import d4
from d4lens.models import scores
from d4lens.studies import probing
from d4lens.studies.layers import layers_of


def parameters(**changed):
    given = {"arms": ["m"], "twins": {}, "images": 90, "dimension": 16, "folds": 3, "bootstrap": 200, "seed": 3}
    return probing.Parameters(**given | changed)


def scored(x, seen, dimension, seed, folds=5):
    """Score and control of each target."""
    one = np.ones((1, seen.elements.shape[1]))
    found = probing.probe(x, seen, dimension, folds, seed)
    return {name: tuple(float(side.score(one)[0]) for side in sides) for name, sides in found.items()}


@pytest.fixture(scope="module")
def seen(lenses):
    return probing.views(lenses, 3)


def test_views_turn_the_targets_with_the_image(lenses, seen):
    n = len(lenses)
    assert len(seen.image) == 2 * n
    g = int(seen.elements[1, 0])
    assert not seen.elements[0].any()
    assert g != 0
    i = int(np.flatnonzero(lenses.labels > 0)[0])
    x, y = seen.targets["position"][i]
    assert np.hypot(*seen.targets["position"][n + i]) == pytest.approx(np.hypot(x, y))
    assert np.isnan(seen.targets["position"][:n][lenses.labels == 0]).all()
    shear = seen.targets["shear"]
    assert tuple(shear[n]) == pytest.approx(d4.transform_spin2_values(*map(float, shear[0]), g))


def test_a_probe_finds_what_is_there_and_nothing_where_nothing_is(seen):
    generator = np.random.default_rng(5)
    there = np.concatenate([seen.targets["theta_E"], seen.targets["class"]], 1) @ generator.normal(size=(4, 40))
    noise = generator.normal(size=(len(seen.image), 40))
    found = scored(there, seen, 16, 1)
    nothing = scored(noise, seen, 16, 1)
    assert found["class"][0] > 0.9
    assert found["theta_E"][0] > 0.9
    assert nothing["class"][0] < 0.6
    assert nothing["theta_E"][0] < 0.2


def test_the_control_measures_what_a_probe_memorises(seen):
    """Features that tell every image apart are memorised: control and score then differ for true targets alone."""
    n = int(seen.image.max()) + 1
    names = np.eye(n)[seen.image]
    score, control = scored(names, seen, n, 1)["class"]
    assert control > 0.6  # learnt on one view of an image, found again in the other
    assert score < 0.6  # of no use for other images


def test_an_image_s_whole_orbit_stands_on_one_side(seen):
    """Were a view of a test image seen in training, features that name the image would score on it."""
    names = np.eye(int(seen.image.max()) + 1)[seen.image]
    found = [scored(names, seen, 90, seed)["class"][0] for seed in range(5)]
    assert np.mean(found) < 0.55


def test_an_image_is_tested_once_by_probes_of_other_images(seen):
    """The sums of a probe count every view of every image that has the target, and each once."""
    n = seen.elements.shape[1]
    x = np.random.default_rng(1).normal(size=(2 * n, 20))
    found = probing.probe(x, seen, 8, 5, 1)
    for name, (real, _) in found.items():
        assert np.array_equal(real.rows[:, 1], 2.0 * np.isfinite(seen.targets[name][:n]).all(1))


def test_scores_of_drawn_images_are_those_of_the_images_themselves():
    generator = np.random.default_rng(2)
    y = generator.normal(size=(12, 2))
    guess, image = y + generator.normal(size=y.shape), np.tile(np.arange(6), 2)
    weights = np.array([[2, 0, 1, 1, 0, 2.0]])
    drawn = np.repeat(np.arange(12), weights[0][image].astype(int))
    spread = ((y[drawn] - y[drawn].mean(0)) ** 2).sum()
    expected = 1 - ((y - guess)[drawn] ** 2).sum() / spread
    assert probing.Sums.of(y, guess, image, 6, False).score(weights)[0] == pytest.approx(expected)
    hits = (y.argmax(1) == guess.argmax(1))[drawn].mean()
    assert probing.Sums.of(y, guess, image, 6, True).score(weights)[0] == pytest.approx(hits)


def test_the_ridge_is_sklearn_s():
    x, y = np.random.default_rng(3).normal(size=(40, 9)) + 3, np.random.default_rng(4).normal(size=(40, 2))
    for penalty, (slope, intercept) in zip((0.1, 100.0), probing.ridge(x, y, (0.1, 100.0))):
        assert x @ slope + intercept == pytest.approx(Ridge(alpha=penalty).fit(x, y).predict(x))


def test_a_random_network_on_the_image_sits_at_its_control(fresh, lenses, seen):
    """Image-only and untrained: no layer gives the class beyond chance, and none beyond the raw pixels' by much."""
    found = probing.features(fresh("resnet18"), lenses, seen.elements)
    scores = {name: np.mean([scored(x, seen, 32, s)["class"][0] for s in range(2)]) for name, x in found.items()}
    assert max(scores.values()) < 1 / 3 + 0.2
    assert scores["logits"] < scores[probing.PIXELS] + 0.2


@pytest.mark.parametrize("name", ["d4lenspinn_published", "resnet18"])
def test_every_network_s_layers_turn_with_the_image_once_pooled_over_the_orbit(name, fresh, lenses):
    """Of an image and the image turned, in an equivariant network and in one that is not."""
    network, turned = fresh(name), [0, 5]
    few = probing.Samples(lenses.observation, lenses.rows(slice(0, 1)), lenses.smooth[:1], lenses.truth.rows([0]))
    other = probing.Samples(lenses.observation, few.batch.turned(5), few.smooth, few.truth)
    here = probing.features(network, few, np.array(turned)[:, None])
    there = probing.features(network, other, np.zeros((1, 1), np.int64))
    for layer, x in here.items():
        if layer in ("head.alpha_x", "head.alpha_y"):
            continue  # components of a vector
        assert np.allclose(x[1], there[layer][0], atol=1e-3 * np.abs(x).max() + 1e-6), layer
    assert np.abs(here[probing.PIXELS][0] - here[probing.PIXELS][1]).max() > 1  # it does turn


def planted(good: np.ndarray, bad: np.ndarray, seen, params, arm="m"):
    """Probes of a network whose first layers are `good` and whose last is `bad`."""
    found = {"unet.lift": good, "unet.floor": good, "convergence": bad}
    return probing.probed(arm, "trained", [found], seen, params)


def test_the_network_that_holds_physics_at_an_earlier_layer_is_named(seen):
    """Planted: theta_E and shear at the first layers of one, at the last of the other. Null: a network and itself."""
    generator, params = np.random.default_rng(6), parameters()
    known = np.concatenate([seen.targets["theta_E"], seen.targets["shear"]], 1)
    there = known @ generator.normal(size=(3, 20))
    noise = generator.normal(size=there.shape)
    early, late = planted(there, noise, seen, params), planted(noise, noise, seen, params, "twin")
    rows = {r["target"]: r for r in probing.earlier(early, late, 90)}
    assert rows["theta_E"]["ci_low"] > 0.5
    assert rows["theta_E"]["value"] == pytest.approx(2 / 3, abs=0.1)
    assert rows["physics"]["ci_low"] > 0
    assert "Yes: from" in probing._earlier([*rows.values()], {"m": "twin"})[0]
    rows = {r["target"]: r for r in probing.earlier(late, early, 90)}
    assert "No, the plain twin is ahead" in probing._earlier([*rows.values()], {"m": "twin"})[0]
    rows = {r["target"]: r for r in probing.earlier(early, early, 90)}
    assert rows["physics"]["value"] == rows["physics"]["ci_low"] == 0
    assert "No difference is shown" in probing._earlier([*rows.values()], {"m": "twin"})[0]


def test_trainings_that_differ_widen_the_interval(seen):
    generator, params = np.random.default_rng(7), parameters()
    there = seen.targets["theta_E"] @ generator.normal(size=(1, 20))
    noise = generator.normal(size=there.shape)

    def width(*several):
        rows = probing.probed("m", "trained", [{"a": x} for x in several], seen, params).rows
        (row,) = [r for r in rows if (r["target"], r["quantity"]) == ("theta_E", "score")]
        return row["ci_high"] - row["ci_low"]

    assert width(there, there) == pytest.approx(width(there), abs=1e-6)
    assert width(there, noise) > width(there) + 0.3


def test_leace_leaves_nothing_that_is_linear_and_changes_least():
    """Closed form: no covariance is left, so that least squares finds nothing; the rest stays, and no edit is smaller."""
    generator = np.random.default_rng(8)
    z = generator.normal(size=(200, 2))
    x = generator.normal(size=(200, 6)) @ generator.normal(size=(6, 6)) + z @ generator.normal(size=(2, 6)) + 3
    projection = probing.leace(x, z)
    after = x - (x - x.mean(0)) @ projection.T
    assert np.abs((after - after.mean(0)).T @ (z - z.mean(0))).max() < 1e-9
    assert r2_score(z, LinearRegression().fit(after, z).predict(after)) < 1e-9
    assert LinearRegression().fit(x, z).score(x, z) > 0.3
    assert np.linalg.matrix_rank(projection) == 2
    assert projection @ projection == pytest.approx(projection)
    # another edit that leaves no covariance: drop the directions of the covariance itself
    u = np.linalg.svd((x - x.mean(0)).T @ (z - z.mean(0)), full_matrices=False)[0]
    assert ((x - after) ** 2).sum() < (((x - x.mean(0)) @ u @ u.T) ** 2).sum()
    # null: what is not there is not taken
    apart = x - z @ LinearRegression().fit(z, x).coef_.T
    assert np.abs(probing.leace(apart, z)).max() < 1e-6


def test_cells_tile_a_map_and_an_edit_of_them_is_theirs_alone():
    for n in (3, 50, 76):
        x = torch.randn(2, 3, n, n, dtype=torch.float64)
        cells = probing._cells(x)
        assert torch.allclose(probing._cells(probing._spread(cells, x)), cells)
        assert torch.allclose(cells.mean((-2, -1)), x.mean((-2, -1)), atol=0.05 if n % 5 else 1e-12)


class Deciding(nn.Module):
    """Planted: the logits follow one number of the image, met as a vector at `layer`."""

    def __init__(self, weights: list[list[float]]) -> None:
        super().__init__()
        self.layer, self.weights = nn.Identity(), torch.tensor(weights)

    def forward(self, batch):
        return {"logits": self.layer(batch.need("fit")) @ self.weights.T}


def test_what_is_erased_and_used_costs_the_decision_and_what_is_not_used_costs_nothing(lenses):
    """Classes follow the fit's first number; erased is that number, or another that the decision does not follow."""
    generator = np.random.default_rng(9)
    fit = generator.normal(size=(90, 7)).astype(np.float32)
    labels = np.searchsorted([-0.5, 0.5], fit[:, 0])
    planted = probing.Samples(
        lenses.observation, replace(lenses.batch, fit=torch.from_numpy(fit)), lenses.smooth, lenses.truth
    )
    decided = Deciding([[-2.0, *[0.0] * 6], [0.0, 0.3, *[0.0] * 5], [2.0, *[0.0] * 6]])
    layer = probing.Layer("layer", "trunk", "plain", "output", "layer")
    aucs = {}
    for i in (0, 3):
        found = probing.erased(decided, layer, planted, fit[:, i : i + 1].astype(float), 1)
        rows = probing.erasure_records(
            "m", "layer", "theta_E", [found], fit[:, i : i + 1].astype(float), labels, parameters(dimension=40)
        )
        aucs[i] = {r["quantity"]: r for r in rows}
        assert aucs[i]["score_kept"]["value"] > 0.9
        assert aucs[i]["score_erased"]["value"] < 0.1
    assert aucs[0]["auc_lost"]["value"] > 0.2
    assert aucs[0]["auc_lost_beyond_shuffled"]["ci_low"] > 0.1
    assert abs(aucs[3]["auc_lost"]["value"]) < 0.02


@pytest.mark.parametrize("name", ["unet.lift", "source", "deflection", "head.blocks.0", "head.logits"])
def test_an_erasure_reaches_every_kind_of_layer_and_only_through_it(name, fresh, lenses, seen):
    few = probing.Samples(
        lenses.observation, lenses.rows(slice(0, 24)), lenses.smooth[:24], lenses.truth.rows(range(24))
    )
    network = fresh("d4lenspinn_published")
    (layer,) = [layer for layer in layers_of(network) if layer.name == name]
    found = probing.erased(network, layer, few, seen.targets["theta_E"][:24], 1)
    with torch.inference_mode():
        assert np.array_equal(found.probabilities["kept"], scores.softmax(network(few.batch)["logits"].numpy()))
    assert not np.allclose(found.probabilities["erased"], found.probabilities["kept"], atol=1e-7)


def test_the_study_says_where_no_twin_is_trained(fresh, lenses, seen):
    found = probing.features(fresh("d4cnn"), lenses, seen.elements)
    probed = probing.probed(
        "d4cnn", "trained", [{name: found[name] for name in ("summary", "pixels")}], seen, parameters()
    )
    answers = probing.summarise(probed.rows, 16, {"d4lenspinn": "plain_unet_of_equal_width"}).answers
    assert "cannot be told here" in answers[-1]
