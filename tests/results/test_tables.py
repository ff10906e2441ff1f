import json

import numpy as np
import pandas as pd
import pytest

from d4lens.errors import D4LensError
from d4lens.models import scores
from d4lens.results import tables


def evaluation(arm="resnet18", seed=0, profile="quick", auc=0.8, **facts):
    measured = {name: {"value": auc, "low": auc - 0.02, "high": auc + 0.01} for name in scores.METRICS}
    better = {name: {**values, "value": auc + 0.05} for name, values in measured.items()}
    sizes = {"n_train": 5400, "n_test": 1500, "params": 11_000_000, "n_pixels": 75, "epochs": 8}
    return {"profile": profile, "arm": arm, "seed": seed, **sizes, **facts, "plain": measured, "tta": better}


def written(folder, evaluations, comparisons=(), caption="Small."):
    """metrics/<profile>/ of these evaluations, each trained for 3.6 minutes."""
    results = tables.table(row for one in evaluations for row in tables.rows(one, 3.6))
    tables.write_profile(folder, results, caption, comparisons)
    return results


def test_columns_begin_as_promised_and_cover_every_metric():
    promised = "profile,arm,seed,tta,auc_macro,auc_no,auc_sphere,auc_vort,accuracy,n_train,n_test,params,train_minutes"
    assert ",".join(tables.RESULT_COLUMNS).startswith(promised)
    assert set(scores.METRICS) <= set(tables.RESULT_COLUMNS)
    assert {f"{name}_{end}" for name in scores.METRICS for end in ("low", "high")} == set(tables.INTERVALS)
    assert len(set(tables.RESULT_COLUMNS)) == len(tables.RESULT_COLUMNS)


def test_an_evaluation_becomes_a_plain_row_and_one_with_tta():
    plain, tta = tables.rows(evaluation(), 3.6)
    assert tuple(plain) == tuple(tta) == tables.RESULT_COLUMNS
    assert (plain["tta"], plain["auc_macro"], plain["ece_low"], plain["ece_high"]) == (False, 0.8, 0.78, 0.81)
    assert (tta["tta"], tta["auc_macro"]) == (True, pytest.approx(0.85))
    assert plain["train_minutes"] == 4
    broken = evaluation()
    del broken["tta"]["ece"]
    with pytest.raises(D4LensError, match="resnet18 has no 'ece'"):
        tables.rows(broken, 1)


def test_rows_come_in_the_same_order_whatever_order_they_arrive_in():
    names = ["zzz_ablation", "d4lenspinn", "resnet18", "aaa_ablation", "d4cnn"]
    rows = [row for name in names for seed in (2, 0) for row in tables.rows(evaluation(name, seed), 1)]
    expected = ["resnet18", "d4cnn", "d4lenspinn", "aaa_ablation", "zzz_ablation"]
    for order in (rows, rows[::-1]):
        found = tables.table(order)
        assert found["arm"].drop_duplicates().tolist() == expected
        assert found[found["arm"] == "d4cnn"][["seed", "tta"]].to_numpy().tolist() == [[0, 0], [0, 1], [2, 0], [2, 1]]
    with pytest.raises(D4LensError, match="two results for quick, resnet18, 0, False"):
        tables.table([*rows, *tables.rows(evaluation("resnet18", 0), 1)])


def test_files_of_a_profile_and_of_all_profiles_hold_the_same_numbers(tmp_path):
    quick = written(tmp_path / "quick", [evaluation("d4cnn", auc=1 / 3), evaluation("resnet18")])
    full = written(tmp_path / "full", [evaluation(profile="full", seed=seed, auc=0.9) for seed in (0, 1)])
    first = (tmp_path / "quick" / tables.RESULTS).read_bytes()
    written(tmp_path / "quick", [evaluation("resnet18"), evaluation("d4cnn", auc=1 / 3)])
    assert (tmp_path / "quick" / tables.RESULTS).read_bytes() == first
    joined = tables.join_profiles(tmp_path)
    pd.testing.assert_frame_equal(joined, pd.concat([full, quick], ignore_index=True))
    pd.testing.assert_frame_equal(tables.read_results(tmp_path / tables.RESULTS), joined)
    records = json.loads((tmp_path / tables.RESULTS_JSON).read_text())
    assert [set(record) for record in records] == [set(tables.RESULT_COLUMNS)] * 8
    pd.testing.assert_frame_equal(pd.DataFrame(records)[list(tables.RESULT_COLUMNS)], joined)
    shown = json.loads((tmp_path / "quick" / tables.AUC_JSON).read_text())
    assert shown == {"resnet18": evaluation()["tta"]["auc_macro"]["value"], "d4cnn": 1 / 3 + 0.05}


def test_results_that_are_missing_or_lack_a_column_are_refused(tmp_path):
    with pytest.raises(D4LensError, match="make reproduce"):
        tables.read_results(tmp_path / tables.RESULTS)
    written(tmp_path, [evaluation()])
    tables.read_results(tmp_path / tables.RESULTS).drop(columns="ece").to_csv(tmp_path / tables.RESULTS)
    with pytest.raises(D4LensError, match="has no column ece;"):
        tables.read_results(tmp_path / tables.RESULTS)
    written(tmp_path, [evaluation()])
    (tmp_path / tables.REPORT).write_text("[")
    with pytest.raises(D4LensError, match=r"report\.json is missing or damaged"):
        tables.table_text(tmp_path)


def test_a_table_of_several_seeds_shows_mean_and_spread_and_of_one_the_interval():
    several = tables.table(
        row for seed, auc in enumerate((0.7, 0.8, 0.9)) for row in tables.rows(evaluation(seed=seed, auc=auc), 4)
    )
    text = tables.results_markdown(several, "Why so.", [])
    assert "| resnet18 | – | 0.8000 ± 0.1000 | 0.800 |" in text
    assert "| resnet18 | D4 | 0.8500 ± 0.1000 |" in text
    assert "5,400 training and 1,500 test images of 75 × 75 pixels, 8 epochs, seeds 0, 1, 2. Why so. ±" in text
    one = tables.table(tables.rows(evaluation(epochs=1), 4))
    text = tables.results_markdown(one, "", [])
    assert "| resnet18 | – | 0.8000 [0.7800, 0.8100] | 0.800 |" in text
    assert ", 1 epoch, seed 0. Brackets" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_comparisons_are_told_from_the_best_arm_whichever_side_it_stood_on():
    rows = [
        row
        for name, auc in (("resnet18", 0.7), ("d4cnn", 0.9), ("d4lenspinn", 0.8))
        for row in tables.rows(evaluation(name, auc=auc), 1)
    ]
    pairs = [
        {"a": "resnet18", "b": "d4lenspinn", "difference": -0.1, "low": -0.2, "high": 0.0, "p_holm": 0.04},
        {"a": "resnet18", "b": "d4cnn", "difference": -0.2, "low": -0.25, "high": -0.1},
        {"a": "d4cnn", "b": "d4lenspinn", "difference": 0.1, "low": -0.01, "high": 0.2},
    ]
    lines = tables.results_markdown(tables.table(rows), "", [{**pair, "seeds": 1} for pair in pairs]).splitlines()
    assert lines[-4].startswith("Macro AUC with TTA of d4cnn minus that of each other arm")
    assert "over images)." in lines[-4]
    assert lines[-2:] == ["- resnet18: +0.2000 [+0.1000, +0.2500]", "- d4lenspinn: +0.1000 [-0.0100, +0.2000]"]
    assert lines[-8].startswith("Contrasts fixed before the first run")
    assert "p corrected for these 1 after Holm" in lines[-8]
    assert lines[-6] == "- resnet18 − d4lenspinn: -0.1000 [-0.2000, +0.0000], p = 0.04"
    crossed = tables.compared(tables.table(rows), [{**pair, "seeds": 3} for pair in pairs])
    assert "over seeds and images," in crossed[0]


def test_baselines_without_a_network_stand_below_the_table(tmp_path):
    baselines = {"chi2 of the fit": {"auc_macro": {"value": 0.83, "low": 0.8, "high": 0.86}}}
    tables.write_profile(tmp_path, tables.table(tables.rows(evaluation(), 1)), "Small.", [], None, baselines)
    text = tables.results_markdown(*tables.read_profile(tmp_path), {}, tables.read_baselines(tmp_path))
    assert text.endswith("- chi2 of the fit: 0.8300 [0.8000, 0.8600]")
    written(tmp_path, [evaluation()])
    assert tables.read_baselines(tmp_path) == {}


def test_a_table_of_an_earlier_version_is_read_without_the_scores_it_lacks(tmp_path):
    results = written(tmp_path, [evaluation()])
    old = results.drop(columns=[name for name in results if name.startswith(("brier", "nll"))])
    old.to_csv(tmp_path / tables.RESULTS, index=False)
    found = tables.read_results(tmp_path / tables.RESULTS)
    assert found["brier"].isna().all()
    assert "| – | – | 2,000 |" in tables.results_markdown(found, "", [])
    tables.write_profile(tmp_path, found, "Small.", [])  # whose JSON knows no NaN


def test_the_terminal_table_is_aligned(tmp_path):
    written(tmp_path, [evaluation("d4lenspinn_published"), evaluation()], caption="Enough **of** it.")
    facts, empty, *lines = tables.table_text(tmp_path).splitlines()
    assert facts.startswith("Profile quick: 5,400 training")
    assert empty == ""
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + 4
    assert lines[2].split()[:2] == ["resnet18", "–"]


def test_numbers_survive_the_files_to_the_last_bit(tmp_path):
    values = np.random.default_rng(0).random(20)
    results = written(tmp_path, [evaluation(seed=seed, auc=value) for seed, value in enumerate(values)])
    assert tables.read_results(tmp_path / tables.RESULTS)["auc_macro"].tolist() == results["auc_macro"].tolist()


def test_families_are_tables_of_their_own_with_their_own_comparisons(tmp_path):
    pairs = [{"a": "d4cnn_300", "b": "resnet18_300", "difference": 0.1, "low": 0.05, "high": 0.2, "seeds": 1}]
    rows = [
        *tables.rows(evaluation("d4cnn"), 1),
        *tables.rows(evaluation("d4cnn_300", n_train=300, auc=0.7), 1),
        *tables.rows(evaluation("resnet18_300", n_train=300, auc=0.6), 1),
    ]
    family = tables.Family(("d4cnn_300", "resnet18_300"), pairs)
    tables.write_profile(tmp_path / "quick", tables.table(rows), "Small.", [], {"curve, 300 images": family})
    folder = tmp_path / "quick"
    text = tables.results_markdown(*tables.read_profile(folder), tables.read_families(folder))
    own, further = text.split("Grid curve, 300 images.")
    assert "5,400 training" in own
    assert "| d4cnn | D4 |" in own
    assert "| d4cnn_300 |" not in own
    assert "| d4cnn_300 | D4 |" in further
    assert "| d4cnn |" not in further
    assert "Macro AUC with TTA of d4cnn_300 minus" in further
    assert "- resnet18_300: +0.1000 [+0.0500, +0.2000]" in further
    said = tables.table_text(tmp_path / "quick")
    assert said.index("d4cnn ") < said.index("Grid curve, 300 images.") < said.index("resnet18_300")
