import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def profiles(load_tool, tmp_path, monkeypatch):
    """tools/profiles.py in a folder with copies of the profiles."""
    for path in (ROOT / "params.yaml", ROOT / "dvc.yaml", ROOT / "trainings.yaml"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    return load_tool(ROOT / "tools" / "profiles.py")


def test_the_committed_files_are_those_that_follow_from_the_parameters(profiles):
    assert profiles.stale() == {}, "run make profiles"
    assert sorted(map(str, profiles.generated())) == [
        *("dvc.yaml", *(f"profiles/{name}/{file}" for name in ("full", "full_75px", "smoke", "survey")
                        for file in ("dvc.yaml", "trainings.yaml")), "trainings.yaml"),
    ]  # fmt: skip


def test_an_arm_added_to_a_profile_is_trained_and_evaluated(profiles):
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["arms"]["mine"] = {"network": "d4cnn", "train": {"epochs": 2}}
    values["profile"]["arms"].append("mine")
    Path("params.yaml").write_text(yaml.safe_dump(values))
    assert list(map(str, profiles.stale())) == ["trainings.yaml"]
    profiles.main()
    assert profiles.stale() == {}
    trainings = yaml.safe_load(Path("trainings.yaml").read_text())["trainings"]
    assert trainings["mine-0"] == {"network": "d4cnn", "run": {"arm": "mine", "seed": 0}}


def test_an_edit_of_the_pipeline_or_of_a_copy_is_brought_to_all(profiles):
    with Path("dvc.yaml").open("a") as file:
        file.write("# edited\n")
    Path("profiles/full/trainings.yaml").unlink()
    copies = [f"profiles/{name}/dvc.yaml" for name in ("full", "full_75px", "smoke", "survey")]
    assert sorted(map(str, profiles.stale())) == sorted([*copies, "profiles/full/trainings.yaml"])
    profiles.main()
    assert {Path(copy).read_text() for copy in copies} == {Path("dvc.yaml").read_text()}
