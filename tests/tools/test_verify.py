import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from d4lens.models import scores
from d4lens.results import tables

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "verify.py"


@pytest.fixture(scope="module")
def verify(load_tool):
    return load_tool(SCRIPT)


@pytest.fixture
def table():
    measured = {name: {"value": 0.95, "low": 0.9, "high": 0.97} for name in scores.METRICS}
    facts = {"profile": "quick", "n_train": 5400, "n_test": 1500, "params": 10**7, "n_pixels": 75, "epochs": 8}
    return tables.table(
        row
        for arm in ("resnet18", "d4lenspinn")
        for row in tables.rows({**facts, "arm": arm, "seed": 0, "plain": measured, "tta": measured}, 3)
    )


def test_every_metric_has_a_tolerance_and_nothing_else_is_let_off(verify):
    compared = {*scores.METRICS, *verify.EXACT, *tables.KEYS, "train_minutes", *tables.INTERVALS}
    assert compared == set(tables.RESULT_COLUMNS)


def test_equal_tables_and_other_times_agree(verify, table):
    other = table.sample(frac=1, random_state=0).assign(train_minutes=99, auc_macro_low=0.0)
    assert verify.misses(other, table, scale=0.0) == []


@pytest.mark.parametrize("name", scores.METRICS)
def test_each_metric_may_move_up_to_its_tolerance_and_no_further(verify, table, name):
    allowed = scores.TABLE[name].tolerance
    for step, expected in ((0.9 * allowed, 0), (-0.9 * allowed, 0), (1.1 * allowed, 1), (-1.1 * allowed, 1)):
        moved = table.copy()
        moved.loc[2, name] += step
        assert len(verify.misses(moved, table)) == expected
    moved.loc[2, name] = np.nan
    assert "nan" in verify.misses(moved, table)[0]


def test_of_an_arm_that_has_only_begun_to_learn_the_aucs_are_held(verify, table):
    begun = table.copy()
    begun.loc[2, "auc_macro"] = 0.6
    for change, expected in (
        ({"auc_macro": 0.74, "recall_no": 0.0}, 0),
        ({"auc_macro": 0.76}, 1),
        ({"ece": np.nan}, 1),
    ):
        moved = begun.copy()
        for name, value in change.items():
            moved.loc[2, name] = value
        assert len(verify.misses(moved, begun)) == expected
    fallen = table.copy()
    fallen.loc[2, "auc_macro"] = 0.6
    assert len(verify.misses(fallen, table)) == 1, "the committed row decides which tolerance holds"


@pytest.mark.parametrize("name", ["n_train", "n_test", "params", "n_pixels", "epochs"])
def test_sizes_are_exact(verify, table, name):
    moved = table.copy()
    moved.loc[0, name] += 1
    (miss,) = verify.misses(moved, table)
    assert miss.startswith(f"quick resnet18 seed 0 plain: {name} is")


def test_rows_that_are_missing_new_or_twice_are_misses(verify, table):
    assert verify.misses(table.drop(index=3), table) == [
        "quick d4lenspinn seed 0 with TTA: missing from the fresh table"
    ]
    assert verify.misses(table, table.drop(index=0)) == ["quick resnet18 seed 0 plain: not in the reference"]
    twice = table.iloc[[0, 1, 2, 3, 3]]
    assert verify.misses(twice, table) == ["quick d4lenspinn seed 0 with TTA: twice in the fresh table"]
    assert verify.misses(table, table.drop(columns="ece")) == ["the reference table has no column ece"]


def test_the_command_compares_with_git_and_fails_on_a_miss(verify, table, tmp_path, monkeypatch, capsys):
    path = tmp_path / "metrics" / "quick" / tables.RESULTS
    tables.write_csv(path, table)
    monkeypatch.chdir(tmp_path)

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    def run(*arguments):
        """The words it ends with, which Python prints before it ends with status 1; None for status 0."""
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        try:
            return verify.main()
        except SystemExit as stop:
            return stop.code

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "none")
    assert "not committed at HEAD" in run()
    git("add", ".")
    git("commit", "-q", "-m", "table")
    assert run() is None
    assert "4 rows agree" in capsys.readouterr().out
    table.loc[1, "auc_macro"] -= 0.2
    tables.write_csv(path, table)
    assert "quick resnet18 seed 0 with TTA: auc_macro is 0.75, was 0.95, allowed ±0.03" in run()
    tables.write_csv(tmp_path / "other.csv", table)
    assert run("--against", "other.csv", "--scale", "0") is None
    assert "full" in run("--profile", "full")
