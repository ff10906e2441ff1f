import numpy as np
import pandas as pd
import pytest

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.models import scores
from d4lens.results import metrics, plots, predictions
from d4lens.table_files import PROBABILITIES


def table(seed=0, signal=1.0, n_per_class=30):
    """Predictions that favour the true class by `signal` logits, more so with TTA."""
    generator = np.random.default_rng(seed)
    labels = np.tile(np.arange(3), n_per_class)
    logits = generator.normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), labels] += signal
    noisy = logits + generator.normal(size=logits.shape)
    paths = [f"val/{CLASSES[label]}/{row}.npy" for row, label in enumerate(labels)]
    return predictions.tabulate(paths, labels, {"plain": noisy, "tta": logits})


def test_the_table_survives_its_file_and_equal_tables_give_equal_bytes(tmp_path):
    written = table()
    assert list(written) == [
        "path",
        "label",
        "tta",
        "logit_no",
        "logit_sphere",
        "logit_vort",
        "p_no",
        "p_sphere",
        "p_vort",
    ]
    predictions.write_predictions(tmp_path / "a.parquet", written)
    predictions.write_predictions(tmp_path / "b.parquet", table())
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    pd.testing.assert_frame_equal(predictions.read_predictions(tmp_path / "a.parquet"), written)
    logits = written[predictions.LOGITS].to_numpy()
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(written[PROBABILITIES].to_numpy(), scores.softmax(logits))


def test_a_damaged_table_is_refused(tmp_path):
    path = tmp_path / "predictions.parquet"
    with pytest.raises(D4LensError, match="run evaluate again"):
        predictions.read_predictions(path)
    predictions.write_predictions(path, table())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(D4LensError, match="run evaluate again"):
        predictions.read_predictions(path)
    table().drop(columns="p_no").to_parquet(path)
    with pytest.raises(D4LensError, match="run evaluate again"):
        predictions.read_predictions(path)


def test_scores_are_those_of_each_view():
    found = predictions.score_predictions(table(), 100, 0)
    _, labels, probabilities = predictions.of_view(table(), "tta")
    assert found["tta"] == metrics.with_intervals(labels, probabilities, 100, 0)
    assert found["plain"]["auc_macro"]["value"] < found["tta"]["auc_macro"]["value"]
    assert set(found) == {"plain", "tta"}


def test_arms_are_compared_pair_by_pair_over_their_seeds():
    tables = {
        (arm, seed): table(10 * k + seed, signal)
        for k, (arm, signal) in enumerate({"weak": 0.2, "same": 0.2, "strong": 2.0}.items())
        for seed in (0, 1)
    }
    fixed = [("weak", "strong"), ("same", "weak")]
    pairs = {(pair["a"], pair["b"]): pair for pair in predictions.compare(tables, 400, 1, fixed)}
    assert list(pairs) == [*fixed, ("same", "strong")]
    assert pairs["weak", "strong"]["high"] < 0
    assert pairs["weak", "strong"]["p_holm"] == pytest.approx(2 * pairs["weak", "strong"]["p_value"], abs=1e-5)
    assert pairs["same", "weak"]["p_holm"] > 0.05
    assert {pair["seeds"] for pair in pairs.values()} == {2}
    assert not {"p_value", "p_holm"} & set(pairs["same", "strong"])
    # however few resamples are asked for: 40 a contrast, of which the least p-value is 2 / 81
    few = predictions.compare(tables, 2, 1, fixed)
    assert few[0]["p_value"] == pytest.approx(2 / 81, abs=1e-6)
    with pytest.raises(D4LensError, match="a contrast names huge, which is not among weak, same, strong"):
        predictions.compare(tables, 2, 1, [("weak", "huge")])
    mean = {
        arm: np.mean(
            [predictions.score_predictions(tables[arm, seed], 1, 0)["tta"]["auc_macro"]["value"] for seed in (0, 1)]
        )
        for arm in ("weak", "strong")
    }
    assert pairs["weak", "strong"]["difference"] == pytest.approx(mean["weak"] - mean["strong"], abs=2e-6)
    assert predictions.compare({}, 10, 0) == []


def test_arms_that_saw_other_images_are_not_compared():
    shuffled = table().sample(frac=1, random_state=0)
    with pytest.raises(D4LensError, match="b with seed 3 was evaluated on other images"):
        predictions.compare({("a", 0): table(), ("b", 3): shuffled}, 10, 0)


def test_plot_tables_count_every_image_and_hold_every_curve():
    tables = {("a", 0): table(0), ("a", 1): table(1), ("b", 0): table(2)}
    counts = plots.confusions(tables)
    assert counts.groupby(["arm", "seed", "actual"])["images"].sum().tolist() == [30] * 9
    right = counts[counts["actual"] == counts["predicted"]].groupby(["arm", "seed"])["images"].sum()
    for (arm, seed), one in tables.items():
        assert right[arm, seed] / 90 == pytest.approx(
            predictions.score_predictions(one, 1, 0)["tta"]["accuracy"]["value"], abs=1e-6
        )
    curves = plots.curves(tables)
    assert list(curves) == ["arm", "seed", "class", "fpr", "tpr"]
    assert len(curves) == 3 * 3 * metrics.ROC_POINTS
    assert not curves.duplicated(["arm", "seed", "class", "fpr"]).any()
    assert (curves[curves["fpr"] == 1]["tpr"] == 1).all()


def test_pictures_name_every_arm_and_equal_tables_give_equal_bytes(tmp_path):
    tables = {(arm, seed): table(seed) for arm in ("a_net", "b_net", "c_net", "d_net") for seed in (0, 1)}
    curves, counts = plots.curves(tables), plots.confusions(tables)
    for name, draw, data in (("roc", plots.draw_roc, curves), ("confusion", plots.draw_confusion, counts)):
        draw(tmp_path / f"{name}.svg", data)
        draw(tmp_path / f"{name}_again.svg", data)
        text = (tmp_path / f"{name}.svg").read_text()
        assert text == (tmp_path / f"{name}_again.svg").read_text()
        assert all(arm in text for arm in ("a_net", "b_net", "c_net", "d_net"))
    # two seeds together: the counts shown are their sum
    cell = counts[(counts["arm"] == "a_net") & (counts["actual"] == "no") & (counts["predicted"] == "no")]
    assert f"({cell['images'].sum()})" in (tmp_path / "confusion.svg").read_text()
