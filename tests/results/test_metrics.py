import math
import time

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    log_loss,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.models import scores
from d4lens.results import metrics


def predictions(n_per_class: int, signal: float, seed: int, decimals: int | None = None):
    """Balanced labels and softmax predictions that favour the true class by `signal` logits."""
    generator = np.random.default_rng(seed)
    labels = np.tile(np.arange(3), n_per_class)
    logits = generator.normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), labels] += signal
    return labels, scores.softmax(logits if decimals is None else logits.round(decimals))


def compared(labels, p_a, p_b, metric, n_resamples=2000, seed=0):
    """The one pair of two arms, each a training or a list of them."""
    given = {name: dict(enumerate(p if isinstance(p, list) else [p])) for name, p in (("a", p_a), ("b", p_b))}
    return metrics.compare_all(labels, given, [("a", "b")], metric, n_resamples, seed)["a", "b"]


def expected_auc(labels, probabilities, sample_weight=None):
    return [
        roc_auc_score(labels == c, probabilities[:, c], sample_weight=sample_weight)
        for c in range(probabilities.shape[1])
    ]


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40), signal=st.floats(-3, 3), seed=st.integers(0, 2**31), decimals=st.sampled_from([None, 0, 1])
)
def test_weighted_auc_equals_sklearn_on_the_resampled_images_ties_included(n, signal, seed, decimals):
    labels, probabilities = predictions(n, signal, seed, decimals)
    generator = np.random.default_rng(seed)
    weights = generator.integers(0, 3, (4, len(labels))).astype(float)
    weights[:, :3] += 1  # no class may vanish: sklearn has no AUC for it either
    found = scores.weighted(labels, probabilities, weights)
    for row, weight in enumerate(weights):
        # the repeated images themselves, and not sklearn's own weights: two independent routes
        drawn = np.repeat(np.arange(len(labels)), weight.astype(int))
        expected = expected_auc(labels[drawn], probabilities[drawn])
        np.testing.assert_allclose([found[f"auc_{name}"][row] for name in CLASSES], expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found["auc_macro"][row], np.mean(expected), rtol=0, atol=1e-12)
        assert found["accuracy"][row] == pytest.approx(
            accuracy_score(labels[drawn], probabilities[drawn].argmax(1)), abs=1e-12
        )


def test_point_values_equal_sklearn():
    labels, probabilities = predictions(200, 1.0, 3, decimals=1)
    found = scores.score(labels, probabilities)
    assert found["auc_macro"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"), abs=1e-12)
    recall = recall_score(labels, probabilities.argmax(1), average=None)
    assert [found[f"recall_{name}"] for name in CLASSES] == pytest.approx(list(recall), abs=1e-12)
    assert tuple(found) == scores.METRICS


def test_constant_prediction_has_auc_one_half_and_perfect_prediction_one():
    labels = np.tile(np.arange(3), 50)
    flat = metrics.with_intervals(labels, np.full((150, 3), 1 / 3), 100, 0)
    perfect = metrics.with_intervals(labels, np.eye(3)[labels], 100, 0)
    assert flat["auc_macro"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert perfect["ece"]["value"] == perfect["brier"]["value"] == perfect["nll"]["value"] == 0.0


def test_nothing_perfect_is_certain():
    """50 images a class without an error: Wilson's lower end is n / (n + 1.96^2), of all 150 for the accuracy."""
    labels = np.tile(np.arange(3), 50)
    perfect = metrics.with_intervals(labels, np.eye(3)[labels], 100, 0)
    for name, n in (("recall_no", 50), ("accuracy", 150), ("auc_macro", 50), ("auc_vort", 50)):
        assert perfect[name] == {"value": 1.0, "low": pytest.approx(n / (n + 1.96**2), abs=1e-4), "high": 1.0}
    wrong = metrics.with_intervals(labels, np.eye(3)[(labels + 1) % 3], 100, 0)
    assert wrong["accuracy"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(1.96**2 / (150 + 1.96**2), abs=1e-4)}
    # one image astray: the interval of its AUC stays within 1 and leaves room on both sides of the value
    astray = np.eye(3)[labels] * 0.8 + 0.2 / 3
    astray[0] = [0.05, 0.9, 0.05]
    found = metrics.with_intervals(labels, astray, 200, 0)["auc_no"]
    assert 0.85 < found["low"] < found["value"] < found["high"] < 1


def test_a_recall_has_the_interval_of_a_share():
    labels, probabilities = predictions(60, 1.0, 4)
    found = metrics.with_intervals(labels, probabilities, 100, 0)
    hits = int((probabilities.argmax(1) == labels)[labels == 1].sum())
    expected = binomtest(hits, 60).proportion_ci(0.95, "wilson")
    assert (found["recall_sphere"]["low"], found["recall_sphere"]["high"]) == pytest.approx(tuple(expected), abs=1e-6)


def test_proper_scores_equal_sklearns():
    labels, probabilities = predictions(100, 1.0, 3)
    found = scores.score(labels, probabilities)
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities), rel=1e-9)
    by_class = [brier_score_loss(labels == c, probabilities[:, c]) for c in range(3)]
    assert found["brier"] == pytest.approx(sum(by_class), rel=1e-9)
    certain = np.where(np.arange(3) == 1, 1.0, 0.0) * np.ones((3, 1))
    assert np.isfinite(scores.score(np.arange(3), certain)["nll"])


def test_calibration_error_by_hand():
    # two bins: confidence 0.9 with 3 of 4 right (gap 0.15), confidence 0.5 with 1 of 2 right (gap 0)
    labels = np.array([0, 1, 2, 0, 0, 1])
    top = np.array([0, 1, 2, 1, 0, 0])
    probabilities = np.array([np.full(3, 0.05)] * 4 + [[0.5, 0.25, 0.25]] * 2)
    probabilities[np.arange(4), top[:4]] = 0.9
    assert scores.score(labels, probabilities)["ece"] == pytest.approx(4 / 6 * 0.15, abs=1e-12)
    # a confidence on an edge belongs to the bin below it: 0.6 = 9/15 shares the bin of 0.55, so their gaps cancel
    probabilities = np.array([[0.6, 0.2, 0.2], [0.55, 0.25, 0.2], [0.2, 0.2, 0.6]])
    assert scores.score(np.arange(3), probabilities)["ece"] == pytest.approx((0.4 - 0.55 + 0.4) / 3)


def test_interval_covers_the_population_value_about_as_often_as_it_says():
    # the population AUC of two unit normals a distance d apart is Phi(d / sqrt 2)
    truth = 0.5 + 0.5 * math.erf(1 / 2)
    labels = np.tile(np.arange(3), 60)
    covered = 0
    for seed in range(150):
        score = np.random.default_rng(seed).normal(size=180) + (labels == 0)
        weights = next(metrics._resample_weights(labels, 64, seed))
        drawn = scores._auc(score, labels == 0, weights)
        low, high = np.quantile(drawn, [0.05, 0.95])
        covered += low <= truth <= high
    # 90 % intervals of 64 resamples: binomial spread 2.4 %, and the percentile method falls a little short
    assert 0.80 <= covered / 150 <= 0.97


def test_resampling_keeps_class_sizes_and_depends_on_the_seed_only():
    labels = np.array([0] * 5 + [1] * 50 + [2] * 7)
    first, again, other = (np.concatenate(list(metrics._resample_weights(labels, 100, seed))) for seed in (1, 1, 2))
    assert first.shape == (100, 62)
    for index, size in enumerate((5, 50, 7)):
        assert (first[:, labels == index].sum(axis=1) == size).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert 0.9 < first[:, labels == 1].var() < 1.1  # multinomial: variance 1 - 1/50


def test_paired_comparison_sees_what_separate_intervals_hide():
    generator = np.random.default_rng(5)
    labels = np.tile(np.arange(3), 400)
    base = generator.normal(size=(1200, 3))
    base[np.arange(1200), labels] += 1
    better = base.copy()
    better[np.arange(1200), labels] += 0.1
    p_a, p_b = scores.softmax(better), scores.softmax(base)
    apart = [metrics.with_intervals(labels, p, 300, 0)["auc_macro"] for p in (p_a, p_b)]
    assert apart[0]["low"] < apart[1]["high"]
    found = compared(labels, p_a, p_b, "auc_macro", 500)
    assert 0 < found.low < found.difference < found.high
    assert found.p_value == pytest.approx(2 / 501, abs=1e-6)
    assert found.seeds == 1
    assert found.difference == pytest.approx(apart[0]["value"] - apart[1]["value"], abs=2e-6)
    mirrored = compared(labels, p_b, p_a, "auc_macro", 500)
    assert (mirrored.low, mirrored.high) == (-found.high, -found.low)


def test_paired_comparison_of_an_arm_with_itself_finds_nothing():
    labels, probabilities = predictions(50, 1.0, 0)
    found = compared(labels, probabilities, probabilities, "accuracy", 200)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_paired_comparison_is_calibrated_under_the_null():
    # two arms equally good: p below 0.1 in about a tenth of the worlds
    small = 0
    for seed in range(120):
        labels, p_a = predictions(60, 1.0, 2 * seed)
        p_b = predictions(60, 1.0, 2 * seed + 1)[1]
        small += compared(labels, p_a, p_b, "accuracy", 200, seed).p_value < 0.1
    assert 0.02 <= small / 120 <= 0.2


def test_paired_comparison_averages_over_trainings():
    labels, p_one = predictions(80, 1.0, 1)
    p_two, p_b = predictions(80, 0.6, 2)[1], predictions(80, 0.8, 3)[1]
    found = compared(labels, [p_one, p_two], p_b, "auc_macro", 200)
    mean = np.mean([scores.score(labels, p)["auc_macro"] for p in (p_one, p_two)])
    assert found.difference == pytest.approx(mean - scores.score(labels, p_b)["auc_macro"], abs=1e-6)


def test_every_pair_is_compared_as_it_would_be_alone():
    labels, p_one = predictions(60, 1.0, 1)
    given = {"one": p_one, "two": predictions(60, 0.8, 2)[1], "three": predictions(60, 0.5, 3)[1]}
    pairs = [("one", "two"), ("three", "one"), ("two", "three")]
    found = metrics.compare_all(labels, {name: {0: p} for name, p in given.items()}, pairs, "accuracy", 150, 4)
    assert list(found) == pairs
    for (a, b), difference in found.items():
        assert difference == compared(labels, given[a], given[b], "accuracy", 150, 4)


def test_seeds_that_differ_widen_a_comparison_and_common_ones_cancel():
    """Trainings whose signals scatter: three differences of 0, +0.5 and -0.5 logits on equal images are no evidence."""
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(3), 300)
    noise = generator.normal(size=(900, 3))
    right = np.eye(3)[labels]
    make = lambda signal: scores.softmax(noise + signal * right)  # noqa: E731
    a, b = [make(s) for s in (1.4, 0.9, 1.6)], [make(s) for s in (0.9, 0.9, 0.9)]
    one, several = compared(labels, a[0], b[0], "auc_macro"), compared(labels, a, b, "auc_macro")
    assert one.p_value < 0.01
    assert several.p_value > 0.01
    assert several.high - several.low > 3 * (one.high - one.low)
    assert (one.seeds, several.seeds) == (1, 3)
    # the same scatter in both arms: what a seed does to both cancels
    shifted = [make(s + 0.2) for s in (1.4, 0.9, 1.6)]
    paired = compared(labels, shifted, a, "auc_macro")
    assert paired.p_value < 0.01
    assert paired.high - paired.low < several.high - several.low


def test_the_spread_over_seeds_is_that_of_a_mean_of_so_many():
    """Of resamples in which images do not matter: the variance over seeds, over their number."""
    drawn = np.tile(np.array([[0.1], [0.4], [0.9]]), (1, 40000))
    found = metrics.over_trainings(drawn, (1, 0, 1, 2))
    assert found.mean() == pytest.approx(drawn[:, 0].mean(), abs=0.01)
    assert found.var() == pytest.approx(drawn[:, 0].var(ddof=1) / 3, rel=0.03)
    assert np.array_equal(metrics.over_trainings(drawn[:1], (1, 0)), drawn[0])


def test_a_mean_over_trainings_and_images_varies_with_both():
    """Of what adds a training's part and an image's: the variance is the sum of the two means' variances."""
    generator = np.random.default_rng(4)
    of_training, of_image = np.array([0.0, 0.3, 0.9])[:, None], generator.normal(size=300)
    drawn = metrics.drawn_means(of_training + of_image, 20000, 1)
    assert drawn.var() == pytest.approx(of_training.var(ddof=1) / 3 + of_image.var() / 300, rel=0.05)
    alone = metrics.drawn_means(of_image, 20000, 1)
    assert alone.var() == pytest.approx(of_image.var() / 300, rel=0.05)
    # a gap counts for its training alone, and each training alike
    gaps = np.array([[1.0, np.nan, np.nan], [2.0, 2.0, 2.0]])
    found = metrics.drawn_means(gaps, 500, 1)
    assert np.isnan(found).any()  # a resample without the first image has no mean of the first training
    assert np.nanmin(found) >= 1.0 - 0.5 * (2**0.5 - 1) - 1e-9


def test_a_share_of_one_training_is_wilson_s_and_the_auc_that_of_the_table():
    hits = np.array([[1.0] * 20 + [0.0] * 5])
    assert metrics.mean_over_trainings(hits, 100, 0, share=True) == (0.8, *metrics.wilson(20, 25))
    nobody = np.zeros((3, 40))
    assert metrics.mean_over_trainings(nobody, 100, 0, share=True) == (0.0, *metrics.wilson(0, 40))
    apart = np.stack([np.ones(40), np.zeros(40), np.ones(40)])
    mean, low, high = metrics.mean_over_trainings(apart, 500, 0, share=True)
    assert mean == pytest.approx(2 / 3)
    assert high - low > 0.5
    labels, p = predictions(60, 1.0, 5)
    one = metrics.with_intervals(labels, p, 300, 2)["auc_macro"]
    assert metrics.auc_over_trainings(labels, [p], 300, 2) == (one["value"], one["low"], one["high"])
    several = [p, predictions(60, 2.0, 6)[1], predictions(60, 0.3, 7)[1]]
    value, low, high = metrics.auc_over_trainings(labels, several, 300, 2)
    assert low < value < high
    assert high - low > 1.5 * (one["high"] - one["low"])


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, never falling
    assert metrics.holm([0.02, 0.5, 0.01, 0.03]) == [0.06, 0.5, 0.04, 0.06]
    assert metrics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert metrics.holm([]) == []


def test_roc_curve_lies_on_sklearns():
    labels, probabilities = predictions(100, 1.0, 7, decimals=1)
    curves = metrics.roc_curves(labels, probabilities)
    for index, name in enumerate(CLASSES):
        curve = curves[curves["class"] == name]
        fpr, tpr, _ = roc_curve(labels == index, probabilities[:, index], drop_intermediate=False)
        # at each of the grid's steps of 1/100 false positives: the highest true rate sklearn has there
        exact = {round(f, 6): t for f, t in zip(fpr, tpr)}
        common = curve[curve["fpr"].isin(exact)]
        assert len(common) > 5
        assert common["tpr"].tolist() == pytest.approx([exact[f] for f in common["fpr"]], abs=1e-6)
        area = scipy.integrate.trapezoid(curve["tpr"], curve["fpr"])
        assert area == pytest.approx(roc_auc_score(labels == index, probabilities[:, index]), abs=0.01)
    assert (curves["tpr"].diff().fillna(0)[curves["fpr"] > 0] >= 0).all()


def test_a_thousand_resamples_of_the_whole_test_split_take_seconds():
    labels, plain = predictions(2500, 1.0, 0)
    started = time.process_time()
    first = metrics.with_intervals(labels, plain, 1000, 0)
    assert time.process_time() - started < 6
    half = (first["auc_macro"]["high"] - first["auc_macro"]["low"]) / 2
    assert 0.004 < half < 0.012


def test_equal_seeds_give_equal_numbers():
    labels, probabilities = predictions(40, 1.0, 0)
    first = metrics.with_intervals(labels, probabilities, 130, 9)
    assert first == metrics.with_intervals(labels, probabilities, 130, 9)
    assert first != metrics.with_intervals(labels, probabilities, 130, 10)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [[1, 0, 0], [0, 1, 0]], "none of class vort"),
        ([0, 1, 3], np.eye(3), "labels must lie"),
        ([0, 1, 2], [[1, 0, 0], [0, np.nan, 0], [0, 0, 1]], "first for image 1"),
        ([0, 1, 2], np.eye(3) * 4, "softmax"),
        ([0, 1, 2], np.eye(3)[:2], "shape"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(labels, probabilities, message):
    with pytest.raises(D4LensError, match=message):
        scores.score(labels, probabilities)


def test_unknown_metric_and_empty_bootstrap_are_refused():
    with pytest.raises(D4LensError, match="auc_macro"):
        compared([0, 1, 2], np.eye(3), np.eye(3), "f1")
    with pytest.raises(D4LensError, match="at least 1 resample"):
        metrics.with_intervals([0, 1, 2], np.eye(3), 0, 0)
