"""TRAINING.md and docs/scaling.md against the code and the committed figures."""

import inspect
import json
import re
import runpy
from pathlib import Path

import pytest
import yaml

from d4lens import models
from d4lens.params import LossWeights, TrainParams

ROOT = Path(__file__).resolve().parents[2]
TRAINING = (ROOT / "TRAINING.md").read_text(encoding="utf-8")


def test_every_parameter_of_training_is_explained_with_its_value():
    listed = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", TRAINING, re.M))
    values = yaml.safe_load((ROOT / "params.yaml").read_text())["train"]
    flat = {
        **{k: v for k, v in values.items() if k != "losses"},
        **{f"losses.{k}": v for k, v in values["losses"].items()},
    }
    known = (TrainParams.model_fields.keys() - {"losses"}) | {f"losses.{name}" for name in LossWeights.model_fields}
    assert flat.keys() | {"epochs"} == known
    for key in known - {"epochs"}:
        assert key in listed, key
        assert yaml.safe_load(listed[key]) == yaml.safe_load(str(flat[key]).lower().replace("none", "null")), key
    assert "epochs" in listed


@pytest.mark.parametrize("name", models.NAMES)
def test_every_option_of_every_network_is_explained(name):
    options = set(inspect.signature(models._MAKERS[name][0]).parameters) - {"observation"}
    listed = set(re.findall(r"^\| `(\w+)` \|", TRAINING, re.M))
    assert options <= listed


def test_the_table_of_a_million_images_is_that_of_the_committed_figures():
    table = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))["table"]()
    assert table in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_every_stage_fits_into_eight_gigabytes_at_paper_size():
    measured = json.loads((ROOT / "benchmarks" / "stages.json").read_text())["peak_megabytes_at_150_px"]
    assert {stage.split()[0] for stage in measured} == {
        "download",
        "preprocess",
        "macrofit",
        "train",
        "evaluate",
        "table",
    }
    assert max(measured.values()) < 8000
