"""download and preprocess as a user runs them: in a project's folder, by its params.yaml."""

import io
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from d4lens.classes import CLASSES
from d4lens.data import arrays
from d4lens.data.archive import zip_member

ROOT = Path(__file__).resolve().parents[2]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def image(seed: int) -> np.ndarray:
    counts = np.random.default_rng(seed).poisson(10, (48, 48))
    return ((counts - counts.min()) / np.ptp(counts))[None]


def archive(path: Path, changes: dict[str, bytes] | None = None) -> Path:
    names = [
        f"dataset/{s}/{c}/{i}.npy" for s, n in (("train", 10), ("val", 3)) for c in CLASSES for i in range(1, n + 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as writer:
        for name, data in {**{name: npy(image(seed)) for seed, name in enumerate(names)}, **(changes or {})}.items():
            writer.writestr(zip_member(name), data)
    return path


@pytest.fixture
def stage(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Run a stage in an empty project whose committed parameters are changed group by group.

    -> exit code, and the last line printed or the sentence it ended with."""
    for name in ("params.yaml", "profiles/smoke/params.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "stages")

    def run(name: str, profile: str = "quick", **groups: dict[str, Any]) -> tuple[int, str]:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        for group, values in groups.items():
            params[group] |= values
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        script = ROOT / "stages" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), "--profile", profile])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stop:
            return (0, "") if stop.code is None else (1, str(stop.code))
        return 0, capsys.readouterr().out.splitlines()[-1]

    return run


def test_a_users_zip_becomes_arrays(stage, tmp_path):
    mine = archive(tmp_path / "mine.zip")
    code, said = stage("download", download={"source": "path", "path": "mine.zip"})
    assert (code, said.split(", ")[0]) == (0, "data/quick/lenses.zip: 0 MB")
    assert (tmp_path / "data/quick/lenses.zip").read_bytes() == mine.read_bytes()
    code, said = stage("preprocess")
    assert (code, said) == (0, "data/quick/arrays: train 27, select 3, test 9 images of 24 pixels, counts")
    assert arrays.load_split("data/quick/arrays", "train").counts.shape == (27, 24, 24)
    assert arrays.load_observation("data/quick/arrays").sky == 40.0


def test_the_simulation_is_the_default_and_brings_its_truth(stage, tmp_path):
    overlay = tmp_path / "profiles/smoke/params.yaml"
    overlay.write_text("studies: {}\nprofile: {name: smoke, download: {n_train: 30, n_val: 12}, preprocess: {bin: 2}}")
    assert stage("download", "smoke", download={"workers": 1})[0] == 0
    code, said = stage("preprocess", "smoke")
    assert (code, said) == (0, "data/smoke/arrays: train 27, select 3, test 12 images of 75 pixels, counts")
    for split in arrays.SPLITS:
        truth = arrays.load_truth("data/smoke/arrays", split)
        assert list(truth.images["path"]) == arrays.load_split("data/smoke/arrays", split).paths
        assert truth.images["theta_E"].between(0.5, 2.5).all()
        if split != "select":  # Half of training is turned, the test is as published; three images tell neither.
            assert (truth.images["gamma2"] > 0).any() == (split == "train")
        assert set(truth.subhalos["path"]) == set(truth.images["path"][truth.images["class"] == "sphere"])


@pytest.mark.parametrize(
    ("download", "said"),
    [
        ({"source": "path"}, "download.path is null"),
        ({"source": "path", "path": "absent.zip"}, "names absent.zip, which does not exist"),
        ({"source": "path", "path": "params.yaml"}, "params.yaml is not a readable zip archive"),
        ({"source": "path", "path": "profiles"}, "profiles holds neither dataset/ nor train and val"),
        ({"source": "web"}, "wrong value 'web' for 'source'"),
        ({"sauce": "path"}, "unknown key 'sauce'"),
    ],
)
def test_a_mistake_in_download_is_one_sentence(stage, tmp_path, download, said):
    code, sentence = stage("download", download=download)
    assert code == 1
    assert sentence.startswith("download: ")
    assert said in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").rglob("*.zip"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset/train/axion/1.npy": b""}, "'dataset/train/axion' is an unknown class folder"),
        (
            {"dataset/val/no/2.npy": npy(np.full((1, 48, 48), np.nan))},
            "dataset/val/no/2.npy holds 2304 pixels that are NaN",
        ),
        ({"dataset/val/no/2.npy": npy(np.rot90(image(4)[0])[None])}, "(val/no/2.npy = train/no/5.npy)"),
    ],
)
def test_a_mistake_in_the_archive_is_one_sentence_and_leaves_nothing(stage, tmp_path, changes, said):
    archive(tmp_path / "data/quick/lenses.zip", changes)
    code, sentence = stage("preprocess")
    assert code == 1
    assert sentence.startswith("preprocess: data/quick/lenses.zip")
    assert said in sentence
    assert "\n" not in sentence
    assert [path.name for path in (tmp_path / "data/quick").iterdir()] == ["lenses.zip"]


def test_neither_dvc_nor_mlflow_is_needed_and_a_mistake_is_no_traceback(stage, tmp_path):
    """In a process of its own, where importing either fails."""
    archive(tmp_path / "mine.zip")
    stage("preprocess", download={"source": "path", "path": "mine.zip"})  # writes params.yaml, finds no archive yet
    block = "import sys, runpy; sys.modules |= dict.fromkeys(['dvc', 'mlflow', 'gdown', 'lightning']); "

    def run(name: str) -> subprocess.CompletedProcess:
        script = ROOT / "stages" / f"{name}.py"
        call = f"sys.argv = [{str(script)!r}]; sys.path[0] = {str(script.parent)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
        return subprocess.run([sys.executable, "-c", block + call], cwd=tmp_path, capture_output=True, text=True)

    for name in ("download", "preprocess"):
        done = run(name)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/quick/arrays/manifest.csv").exists()
    (tmp_path / "data/quick/lenses.zip").unlink()
    done = run("preprocess")
    assert (done.returncode, done.stderr) == (1, "preprocess: no archive at data/quick/lenses.zip; check the path\n")
