"""The pipeline's graph: what a change reruns, and that every profile is the one pipeline at its own scale."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recipes
import yaml
from dvc.repo import Repo

from d4lens import models, studies
from d4lens.imports import closure
from d4lens.params import check_group

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ["quick", *sorted(path.name for path in (ROOT / "profiles").iterdir())]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is needed to lay a copy of the project")


def overlay(profile: str) -> dict:
    path = ROOT / "params.yaml" if profile == "quick" else ROOT / "profiles" / profile / "params.yaml"
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A copy of the pipeline in which every stage is done: scripts that only write their outs, run by DVC itself."""
    root = tmp_path_factory.mktemp("project")
    lay(root)
    run(root, "dvc", "repro", "-q")
    return root


def lay(root: Path) -> None:
    for name in ("dvc.yaml", "params.yaml", "trainings.yaml", "stages", "src", "metrics/archive"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    shutil.rmtree(root / "src" / "d4lens" / "weights", ignore_errors=True)
    for script in (root / "stages").glob("*.py"):
        if script.name != "common.py":
            script.write_text(STUB)
    run(root, "git", "init", "-q")
    run(root, "dvc", "init", "-q")


STUB = """
import sys, time
from pathlib import Path
import yaml
stage = Path(sys.argv[0]).stem
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
for name, item in yaml.safe_load(Path("dvc.yaml").read_text())["stages"].items():
    item = item.get("do", item)
    if name == stage:
        item = item.get("do", item)
        for kind in ("outs", "metrics", "plots"):
            for out in item.get(kind, []):
                path = out if isinstance(out, str) else next(iter(out))
                for key, value in (("${profile.name}", "quick"),
                                   ("${profile.page.file}", "reports/report.html"),
                                   ("${key}", given.get("--study", given.get("--arm", "") + "-" + given.get("--seed", "")))):
                    path = path.replace(key, value)
                path = Path(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.suffix:
                    path.write_text("{}" if path.suffix == ".json" else " ".join(sys.argv))
                else:
                    path.mkdir(exist_ok=True)
                    (path / "done").write_text(" ".join(sys.argv))
                    if stage in ("train", "evaluate"):  # which also tell how long they took
                        (path / "timing.json").write_text(str(time.time_ns()))
"""


def run(root: Path, *command: str) -> str:
    tool = [sys.executable, "-m", *command] if command[0] == "dvc" else list(command)
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(tool, cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_run(printed: str) -> set[str]:
    """Names of the stages, without their matrix, that DVC says it runs."""
    lines = printed.splitlines()
    return {line.split("'")[1].split("@")[0] for line in lines if line.startswith("Running stage")}


def would_run(root: Path, change: dict) -> set[str]:
    """Names of the stages DVC would run after `change` of params.yaml, as far as it tells before any has run."""
    path = root / "params.yaml"
    before = path.read_text()
    values = yaml.safe_load(before)
    for key, value in change.items():
        *groups, last = key.split(".")
        group = values
        for name in groups:
            group = group[name]
        assert group.get(last) != value
        group[last] = value
    try:
        path.write_text(yaml.safe_dump(values))
        return forecast(root)
    finally:
        path.write_text(before)


def forecast(root: Path) -> set[str]:
    """Names of the stages that `dvc repro --dry` says it runs."""
    with contextlib.chdir(root), Repo() as repo:
        return {stage.name for stage in repo.reproduce(dry=True)}


def test_nothing_runs_twice(pipeline):
    assert would_run(pipeline, {}) == set()


def test_an_evaluation_parameter_reruns_evaluation_table_and_page_alone(pipeline, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(pipeline, root)
    change = {"evaluate.bootstrap": 123}
    assert {name.split("@")[0] for name in would_run(root, change)} == {"evaluate", "table"}
    # DVC's forecast ends at a stage whose outs may come out as they were: only a run tells whether they do.
    values = yaml.safe_load((root / "params.yaml").read_text())
    values["evaluate"]["bootstrap"] = 123
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    ran = stages_run(run(root, "dvc", "repro"))
    assert ran == {"evaluate", "table", "page"}


def test_one_arm_s_parameter_reruns_that_arm_alone(pipeline):
    arms = overlay("quick")["profile"]["arms"]
    reran = would_run(pipeline, {f"arms.{arms[-1]}.train": {"learning_rate": 1e-4}})
    assert trained(reran) == {f"{arms[-1]}-{seed}" for seed in overlay("quick")["profile"]["seeds"]}


def test_a_network_s_learning_rate_reruns_its_arms_alone(pipeline):
    assert trained(would_run(pipeline, {"networks.d4cnn.learning_rate": 1e-4})) == {"d4cnn-0", "d4cnn_significance-0"}


def test_a_learning_rate_for_all_reruns_every_training(pipeline):
    assert trained(would_run(pipeline, {"train.learning_rate": 1e-4})) == {
        f"{arm}-0" for arm in overlay("quick")["profile"]["arms"]
    }


def trained(stages: set[str]) -> set[str]:
    return {name.removeprefix("train@") for name in stages if name.startswith("train@")}


@pytest.mark.parametrize(
    ("file", "reran"),
    [
        ("results/page/__init__.py", {"page"}),
        ("inference/api.py", set()),
        ("tracking/store.py", set()),
        ("data/download.py", {"download", "preprocess", "page"}),
    ],
)
def test_an_edit_of_code_reruns_what_imports_it(pipeline, file, reran):
    path = pipeline / "src" / "d4lens" / file
    before = path.read_bytes()
    try:
        path.write_bytes(before + b"# edited\n")
        names = {name.split("@")[0] for name in forecast(pipeline)}
    finally:
        path.write_bytes(before)
    assert names - {"study"} == reran


def test_a_caption_reruns_the_table_and_the_page_alone(pipeline):
    assert would_run(pipeline, {"profile.page.caption": "another"}) == {"table", "page@quick"}


def test_a_parameter_of_the_page_reruns_the_page_alone(pipeline):
    assert would_run(pipeline, {"page.examples": 3}) == {"page@quick"}


def test_a_parameter_of_a_study_reruns_that_study_alone(pipeline):
    assert {name for name in would_run(pipeline, {"patching.pairs": 7}) if "study" in name} == {"study@patching"}
    values = {"studies.patching": {"pairs": 7}}
    assert {name for name in would_run(pipeline, values) if "study" in name} == {"study@patching"}


def test_a_change_of_a_study_s_file_reruns_that_study_alone(pipeline):
    file = pipeline / "src" / "d4lens" / "studies" / "probing.py"
    before = file.read_text()
    file.write_text(before + "# changed\n")
    try:
        assert would_run(pipeline, {}) == {"study@probing"}  # and the page where its outcome changes
    finally:
        file.write_text(before)


def test_what_torchrun_made_without_dvc_is_committed_and_not_made_again(tmp_path):
    """The commands of docs/scaling.md."""
    lay(tmp_path)
    arms = [
        ("--arm", m, "--seed", str(s))
        for m in overlay("quick")["profile"]["arms"]
        for s in overlay("quick")["profile"]["seeds"]
    ]
    for stage in ("download", "preprocess", "macrofit", "train", "evaluate"):
        for arm in arms if stage in ("train", "evaluate") else [()]:
            run(tmp_path, sys.executable, f"stages/{stage}.py", "--profile", "quick", *arm)
    (commit,) = re.findall(r"^dvc commit .*$", (ROOT / "docs" / "scaling.md").read_text(), re.MULTILINE)
    commit = commit.replace("profiles/full/dvc.yaml", "dvc.yaml").replace("{", "").replace("}", "")
    head, _, stages = commit.rpartition("dvc.yaml:")
    run(tmp_path, *head.split(), *(f"dvc.yaml:{stage}" for stage in stages.split(",")))
    made = stages_run(run(tmp_path, "dvc", "repro"))
    assert {"table", "page"} <= made
    assert not made & {"download", "preprocess", "macrofit", "train", "evaluate"}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_names_arms_that_exist_and_sets_its_scale(profile):
    values = overlay(profile)
    assert values["profile"]["name"] == profile
    assert set(values["profile"]) == set(overlay("quick")["profile"])
    for name, changed in values["studies"].items():
        check_group(studies.load_study(name).parameters, overlay("quick")[name] | changed, f"study {name} of {profile}")


@pytest.mark.parametrize("profile", PROFILES[1:])
def test_every_profile_is_the_same_pipeline(profile):
    # a file and no link: in git's history DVC does not follow one, and `dvc metrics diff` then fails for every profile
    path = ROOT / "profiles" / profile / "dvc.yaml"
    assert not path.is_symlink()
    assert path.read_bytes() == (ROOT / "dvc.yaml").read_bytes(), "run make profiles"


def test_every_network_has_its_learning_rate_and_every_arm_a_network():
    values = overlay("quick")
    assert set(values["networks"]) == set(models.NAMES)
    assert {arm["network"] for arm in values["arms"].values()} <= set(models.NAMES)


STAGES = {
    name: stage.get("do", stage) for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}


def uncovered(deps, scripts, root=ROOT):
    """Of the code that the scripts import what no dependency names, and the dependencies of which nothing is imported."""
    depends = [root / dep for dep in deps if "${" not in dep and not dep.startswith("metrics/")]
    assert all(path.exists() for path in depends)
    imported = set[Path]().union(*(closure(script, root / "src") for script in scripts))
    missing = {path for path in imported if not any(path.is_relative_to(dep) for dep in depends)}
    return missing, {dep for dep in depends if not any(path.is_relative_to(dep) for path in imported)}


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"study"}))
def test_a_stage_depends_on_all_code_that_its_script_imports(name):
    missing, idle = uncovered(STAGES[name]["deps"], [ROOT / "stages" / f"{name}.py"])
    assert missing == set(), "name these in deps of dvc.yaml, then make profiles"
    assert idle == set(), "nothing of these is imported"


def test_the_stage_of_the_studies_depends_on_all_code_of_every_study():
    package = ROOT / "src" / "d4lens" / "studies"
    for study in studies.STUDY_NAMES:
        deps = [dep.replace("${key}", study) for dep in STAGES["study"]["deps"]]
        missing, _ = uncovered(deps, [ROOT / "stages" / "study.py", package / f"{study}.py"])
        assert missing == set(), study
    every = [package / f"{study}.py" for study in studies.STUDY_NAMES]
    _, idle = uncovered(STAGES["study"]["deps"], [ROOT / "stages" / "study.py", *every])
    assert idle == set(), "no study imports anything of these"


def test_every_stage_is_described():
    assert all(stage["desc"] for stage in STAGES.values())


def test_the_recipe_of_a_stage_is_three_files_and_runs(tmp_path):
    """CONTRIBUTING.md's diff in a copy of the project: its dependencies are whole, its parameters checked, its out written."""
    recipes.copy_of_project(tmp_path, "src", "stages", "profiles", "params.yaml", "dvc.yaml")
    recipes.apply_recipe("stages/totals.py", ["stages/totals.py", "params.yaml", "dvc.yaml"], tmp_path)
    stage = yaml.safe_load((tmp_path / "dvc.yaml").read_text())["stages"]["totals"]
    missing, idle = uncovered(stage["deps"], [tmp_path / "stages" / "totals.py"], tmp_path)
    assert (missing, idle) == (set(), set())

    folder = tmp_path / "data" / "smoke" / "arrays"
    folder.mkdir(parents=True)
    np.save(folder / "test.npy", np.ones((2, 8, 8), np.uint16) * np.uint16([[[3]], [[5]]]))
    paths = ["val/no/1.npy", "val/vort/1.npy"]
    rows = pd.DataFrame({"split": "test", "row": [0, 1], "path": paths, "label": [0, 2]})
    rows.to_csv(folder / "manifest.csv", index=False)
    command = [sys.executable, "stages/totals.py", "--profile", "smoke"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}

    def totals() -> tuple[int, str]:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout or done.stderr

    assert totals() == (0, "metrics/smoke/totals.csv: 2 images\n")
    assert (tmp_path / "metrics/smoke/totals.csv").read_text() == "path,counts\nval/no/1.npy,192\nval/vort/1.npy,320\n"
    values = yaml.safe_load((tmp_path / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**values, "totals": {"split": 3}}))
    status, said = totals()
    assert status == 1
    assert "wrong value 3 for 'split' in group 'totals'" in said
