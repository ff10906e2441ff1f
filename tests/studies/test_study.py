"""What the stage hands a study and what it publishes, and that the registry finds every study."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from d4lens import models, studies
from d4lens.errors import D4LensError
from d4lens.inference.pipeline import default_weights
from d4lens.models import weights
from d4lens.results import charts, outcome
from d4lens.results.outcome import Outcome, record
from d4lens.studies.networks import first_networks
from d4lens.studies.study import NEEDS, Drawing, Inputs, Study, publish_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", studies.STUDY_NAMES)
def test_every_module_that_is_not_shared_is_a_study_with_its_group_in_params_yaml(name):
    study = studies.load_study(name)
    assert isinstance(study, Study)
    assert set(study.needs) <= set(NEEDS)
    group = yaml.safe_load((ROOT / "params.yaml").read_text())[name]
    assert set(group) == set(study.parameters.model_fields)


def test_a_name_that_is_no_study_is_told():
    for name in ("astrology", "layers"):
        with pytest.raises(D4LensError, match=f"no study is called '{name}'; the studies are attribution, "):
            studies.load_study(name)


def test_the_stage_depends_on_the_shared_modules_and_on_all_that_a_study_may_need():
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["study"]["do"]["deps"]
    assert {f"src/d4lens/studies/{name}.py" for name in ("${key}", *studies.SHARED_MODULES)} <= set(deps)
    assert {folder.format(profile="${profile.name}") for folder in NEEDS.values()} <= set(deps)


def test_a_study_gets_what_it_declares_and_is_told_what_is_missing(tmp_path):
    (tmp_path / "data" / "p" / "arrays").mkdir(parents=True)
    inputs = Inputs("p", ("arrays", "networks"), ["resnet18"], [0], tmp_path)
    assert inputs.folder("arrays") == tmp_path / "data" / "p" / "arrays"
    with pytest.raises(D4LensError, match=r"there is no .*runs/p/trained; run make reproduce PROFILE=p"):
        inputs.folder("networks")
    with pytest.raises(ValueError, match="reads 'fits' and declares only arrays, networks"):
        inputs.folder("fits")
    with pytest.raises(ValueError, match="reads 'predictions'"):
        inputs.predictions()


def test_the_arms_are_those_that_the_profile_has_or_every_one(tmp_path):
    tensors, description = weights.read(default_weights())
    for seed in (3, 4):
        weights.write(tmp_path / "runs" / "p" / "trained" / f"d4lenspinn-{seed}.safetensors", tensors, description)
    inputs = Inputs("p", ("networks",), ["d4lenspinn"], [3, 4], tmp_path)
    (arm,) = inputs.arms(["d4lenspinn", "d4cnn"])
    assert (arm.name, len(arm.networks)) == ("d4lenspinn", 2)
    network = first_networks([arm])["d4lenspinn"]
    assert type(network) is type(models.load(default_weights())[0])
    with pytest.raises(D4LensError, match="d4cnn is not among the profile's arms d4lenspinn"):
        inputs.arms(["d4lenspinn", "d4cnn"], every=True)
    with pytest.raises(D4LensError, match="none of d4cnn is trained"):
        inputs.arms(["d4cnn"])
    (tmp_path / "runs" / "p" / "trained" / "d4lenspinn-4.safetensors").unlink()
    with pytest.raises(D4LensError, match="d4lenspinn-4"):
        inputs.arms(["d4lenspinn"])


def drawing(name: str, mark: str = "point") -> Drawing:
    table = pd.DataFrame({"a": [1]})
    return Drawing(name, name.title(), "Drawn.", table, charts.panels("a", [{"mark": mark}], ("a",)))


def test_what_it_publishes_replaces_what_was_there_or_leaves_it(tmp_path):
    found = Outcome("?", ["Yes."], [], [record(1, 0, 2, 3)])
    folder, file = tmp_path / "plots" / "p" / "studies" / "s", tmp_path / "metrics" / "p" / "studies" / "s.json"
    publish_study("s", "S", "p", found, [drawing("a"), drawing("b")], tmp_path)
    (figure, _) = outcome.read_outcome(file).figures
    assert figure == outcome.DrawingRecord(
        "plots/p/studies/s/a.csv", "A", "Drawn.", "python stages/study.py --profile p --study s"
    )
    publish_study("s", "S", "p", found, [drawing("a", "line")], tmp_path)
    assert {path.name for path in folder.iterdir()} == {"a.csv", "a.json"}
    assert (folder / "a.csv").read_text() == "a\n1\n"
    drawn = json.loads((folder / "a.json").read_text())
    assert drawn["spec"]["layer"] == [{"mark": "line"}]
    assert drawn["data"]["values"] == "<DVC_METRIC_DATA>"
    before = file.read_bytes()
    broken = Drawing("c", "C", "Drawn.", pd.DataFrame({"a": [1]}), charts.panels("a", [object()], ()))
    with pytest.raises(TypeError):
        publish_study("s", "S", "p", found, [drawing("a", "other"), broken], tmp_path)
    assert {path.name for path in folder.parent.iterdir()} == {"s"}
    assert json.loads((folder / "a.json").read_text()) == drawn
    assert file.read_bytes() == before
