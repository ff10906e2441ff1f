import numpy as np
import pytest

from d4lens.lensing import d4
from d4lens.studies import probing


@pytest.fixture(scope="module")
def seen(lenses):
    return probing.views(lenses, 3)


def test_views_turn_the_targets_with_the_image(lenses, seen):
    n = len(lenses)
    assert len(seen.image) == 2 * n
    second = seen.batch.counts[n]
    (g,) = [g for g in d4.ELEMENTS if (lenses.rows(slice(0, 1)).turned(g).counts[0] == second).all()]
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
    found = probing.probe(there, seen, 16, 1)
    nothing = probing.probe(noise, seen, 16, 1)
    assert found["class"][0] > 0.9
    assert found["theta_E"][0] > 0.9
    assert nothing["class"][0] < 0.6
    assert nothing["theta_E"][0] < 0.2


def test_the_control_measures_what_a_probe_memorises(seen):
    """Features that tell every image apart are memorised: control and score then differ for true targets alone."""
    n = int(seen.image.max()) + 1
    names = np.eye(n)[seen.image]
    score, control = probing.probe(names, seen, n, 1)["class"]
    assert control > 0.6  # learnt on one view of an image, found again in the other
    assert score < 0.6  # of no use for other images


def test_an_image_s_whole_orbit_stands_on_one_side(seen):
    """Were a view of a test image seen in training, features that name the image would score on it."""
    names = np.eye(int(seen.image.max()) + 1)[seen.image]
    scores = [probing.probe(names, seen, 90, seed)["class"][0] for seed in range(5)]
    assert np.mean(scores) < 0.55


def test_a_random_network_on_the_image_sits_at_its_control(fresh, seen):
    """Image-only and untrained: no layer gives the class beyond chance, and none beyond the raw pixels' by much."""
    found = probing.features(fresh("resnet18"), seen.batch)
    scores = {name: np.mean([probing.probe(x, seen, 32, s)["class"][0] for s in range(3)]) for name, x in found.items()}
    assert max(scores.values()) < 1 / 3 + 0.2
    assert scores["logits"] < scores[probing.PIXELS] + 0.2


def test_the_interval_over_splits_is_student_s():
    mean, low, high = probing.over_seeds(np.array([0.1, 0.2, 0.3, np.nan]))
    assert mean == pytest.approx(0.2)
    assert high - mean == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert low == pytest.approx(2 * mean - high)


def test_the_study_says_where_the_twin_is_missing(fresh, seen):
    found = {
        name: x for name, x in probing.features(fresh("d4cnn"), seen.batch).items() if name in ("summary", "pixels")
    }
    rows = probing.records("d4lenspinn", "trained", found, seen, 16, [1, 2])
    found = probing.outcome(rows, 16, "plain_unet_of_equal_width")
    assert "is not trained in this profile" in found.answers[-1]
    twin = [{**row, "model": "plain_unet_of_equal_width"} for row in rows]
    assert "of its plain twin" in probing.outcome([*rows, *twin], 16, "plain_unet_of_equal_width").answers[-1]
