import dataclasses
import json

import pytest

from d4lens.errors import D4LensError
from d4lens.results import outcome
from d4lens.results.outcome import DrawingRecord, Outcome, record


def some(**changes) -> Outcome:
    found = Outcome(
        "which?", ["that, 0.9"], ["why"], [record(0.9, 0.8, float("nan"), 12, arm="a")],
        [DrawingRecord("plots/a.svg", "A", "drawn", "make reproduce")], {"random": "0"},
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


def test_a_study_comes_back_and_what_is_undefined_is_null(tmp_path):
    outcome.write_outcome(tmp_path / "s.json", some())
    assert outcome.read_outcome(tmp_path / "s.json") == some()
    kept = json.loads((tmp_path / "s.json").read_text())
    assert kept["name"] == "s"
    assert kept["records"] == [{"arm": "a", "value": 0.9, "ci_low": 0.8, "ci_high": None, "n": 12}]


def test_a_record_without_its_interval_is_no_record(tmp_path):
    with pytest.raises(ValueError, match="has no ci_high, ci_low"):
        outcome.write_outcome(tmp_path / "s.json", some(records=[{"value": 1.0, "n": 3}]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"name": "s"}'])
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(D4LensError, match="run the stage"):
        outcome.read_outcome(tmp_path / "s.json")
