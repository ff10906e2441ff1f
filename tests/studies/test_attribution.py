import numpy as np

from d4lens.studies import attribution


def test_the_highest_point_is_held_against_the_true_place(small_pairs):
    clean, _ = small_pairs
    near = (attribution.distance(clean) <= attribution.TOLERANCE).double()
    assert attribution.pointed(near, clean).all()
    assert not attribution.pointed(1 - near, clean).any()


def test_the_shipped_network_points_better_than_chance_and_the_centre(shipped, shipped_pairs):
    clean, _ = shipped_pairs
    hits = attribution.play(shipped[0], clean, 2, "integrated_gradients").mean()
    chance = {name: values.mean() for name, values in attribution.baselines(clean).items()}
    assert hits > chance["random_on_ring"] + 0.2
    assert hits > chance["centre"]
    assert chance["random"] < 0.1


def test_the_study_holds_each_model_against_each_baseline(small_pairs):
    kinds = np.array([1, 2] * 20)
    rows = [
        *attribution.records("random", "baseline", np.full(40, 0.02), kinds, 100, 1),
        *attribution.records("d4lenspinn", "gradient", np.ones(40), kinds, 100, 1),
    ]
    found = attribution.outcome(rows, small_pairs[0].observation)
    assert "d4lenspinn, gradient: 1.00 [1.00, 1.00], above random of these." in found.answers
    assert [r["n"] for r in rows[:3]] == [40, 20, 20]
