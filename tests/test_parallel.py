"""The stages under torchrun: two gloo processes against one, a size below the smoke profile's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from d4lens.models import weights
from d4lens.parallel import Ranks, ranks
from d4lens.train import loop

ROOT = Path(__file__).resolve().parents[1]
STAGES = ROOT / "stages"
ARM = ["--model", "pinn", "--seed", "0"]
# Every loss and both kinds of batch normalisation, without what is random in a step.
OPTIONS = {"fields": [1, 2], "descent": [2]}

# What both sides run: the stages, with the gradients of the first step of the training kept.
COMMON = """
import json, runpy, sys
from pathlib import Path
import numpy as np
from d4lens.train.module import Training

def stage(name, *words):
    sys.argv = [name, "--profile", "smoke", *words]
    runpy.run_path(f"{STAGES}/{name}.py", run_name="__main__")

def keep(module, optimizer, clip=Training.on_before_optimizer_step):
    if module.global_rank == 0 and not Path("gradients.npz").exists():
        np.savez("gradients.npz", **{name: p.grad.numpy() for name, p in module.net.named_parameters()})
    clip(module, optimizer)
"""
TWO = """
STAGES, arm = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, STAGES)
Training.on_before_optimizer_step = keep
import torch
from d4lens.train import loop
loop.precision = lambda wanted: "64-true"
from d4lens.errors import D4LensError
from d4lens.parallel import ranks

place = ranks()
stage("download")
if place.leads:
    stage("preprocess")
place.wait()
stage("macrofit")
stage("evaluate", *arm)
place.wait()
stage("train", *arm)
try:
    place.gather(slice(0, 2), torch.ones(2, 3), 3)
except D4LensError as error:
    Path(f"rank-{place.rank}.json").write_text(json.dumps([place.world, str(error)]))
"""

# A training of two processes, one of which may die in the second epoch.
RESUMED = """
import os, signal
STAGES, arm, dies = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "dies"
sys.path.insert(0, STAGES)

def step(self, batch, index, whole=Training.training_step):
    if dies and (self.global_rank, self.epoch, index) == (1, 1, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, batch, index)

Training.training_step = step
stage("train", *arm)
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def project(folder: Path, batch: int, epochs: int = 1) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["train"] |= {"augment": False, "precision": "32-true", "batch_size": batch}
    values["macrofit"]["batch_size"] = 5
    values["evaluate"] |= {"batch_size": 4, "bootstrap": 100}
    values["arms"] = {"pinn": {"base": "d4lenspinn", "options": OPTIONS}}
    (folder / "profiles" / "smoke").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    own = yaml.safe_load((ROOT / "profiles" / "smoke" / "params.yaml").read_text())
    own["models"] = ["pinn"]
    own["profile"] |= {"download": {"n_train": 24, "n_val": 9}, "preprocess": {"bin": 4}, "train": {"epochs": epochs}}
    (folder / "profiles" / "smoke" / "params.yaml").write_text(yaml.safe_dump(own))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of one process and of two, after download, preprocess, macrofit, evaluate and train.

    Both evaluate the network that the one process trained; the two train with half its batch each.
    """
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    project(one, 8)
    project(two, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D4LENS_TRACKING", "off")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(one)
        patch.syspath_prepend(str(STAGES))
        patch.setattr(sys, "argv", [])
        names: dict = {"STAGES": str(STAGES)}
        exec(COMMON, names)
        patch.setattr(names["Training"], "on_before_optimizer_step", names["keep"])
        # In float64: what two processes and one do differently must not hide in float32's rounding.
        patch.setattr(loop, "precision", lambda wanted: "64-true")
        for name, words in (("download", []), ("preprocess", []), ("macrofit", []), ("train", ARM), ("evaluate", ARM)):
            names["stage"](name, *words)
        shutil.copytree(one / "runs" / "smoke" / "pinn-0", two / "runs" / "smoke" / "pinn-0")
        (two / "driver.py").write_text(COMMON + TWO)
        done = subprocess.run(
            [sys.executable, *TORCHRUN, "driver.py", str(STAGES), json.dumps(ARM)],
            cwd=two,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return one, two


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.suffix != ".lock"
            if path.is_file()}  # fmt: skip


def test_simulation_and_fit_are_byte_equal_and_leave_nothing_beside(both):
    one, two = (files(folder / "data") for folder in both)
    assert {"smoke/lenses.zip", "smoke/macrofit/train_residual.npy", "smoke/macrofit/test_fit.csv"} <= set(one)
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []


def test_evaluation_covers_every_image_once_with_a_ragged_last_share(both):
    one, table = (
        pd.read_parquet(folder / "runs/smoke/predicted/pinn-0.parquet").sort_values(["tta", "path"]) for folder in both
    )
    # Not byte-equal: a process has fewer threads, and the last bits of a convolution hang on their number.
    pd.testing.assert_frame_equal(table, one, rtol=1e-3, atol=1e-5)
    assert table.groupby("tta")["path"].nunique().tolist() == [9, 9]
    assert [len(range(9)[rows]) for rows in Ranks(0, 2, 0, 2).shares(9, 4)] == [4, 5]


def test_a_step_of_two_has_the_gradient_of_one_step_on_all_images(both):
    one, two = (np.load(folder / "gradients.npz") for folder in both)
    assert set(one.files) == set(two.files)
    largest = max(np.abs(one[name]).max() for name in one.files)
    for name in one.files:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-6, atol=1e-9 * largest, err_msg=name)


def test_the_two_train_one_network(both):
    history = pd.read_csv(both[1] / "runs" / "smoke" / "pinn-0" / "history.csv")
    assert history["epoch"].tolist() == [1]
    assert np.isfinite(history.to_numpy()).all()
    (kept,) = (both[1] / "runs" / "smoke" / ".work" / "pinn-0").glob("epoch-*")
    assert all(name.startswith("best.") for name in weights.read(kept)[0])


def test_cut_off_under_torchrun_a_training_goes_on_to_the_same_bytes(both, tmp_path, monkeypatch):
    monkeypatch.setenv("D4LENS_TRACKING", "off")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def train(folder: Path, fate: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *TORCHRUN, "driver.py", str(STAGES), json.dumps(ARM), fate]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        project(folder, 4, epochs=2)
        (folder / "data").symlink_to(both[1] / "data")
        (folder / "driver.py").write_text(COMMON + RESUMED)
    done, died = train(whole, "lives"), train(cut, "dies")
    assert done.returncode == 0, done.stderr[-2000:]
    assert died.returncode != 0
    assert not (cut / "runs" / "smoke" / "pinn-0").exists()
    resumed = train(cut, "lives")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "going on after epoch 1 of 2" in resumed.stdout + resumed.stderr
    outcomes = [
        [(folder / "runs/smoke/pinn-0" / name).read_bytes() for name in ("model.safetensors", "history.csv")]
        for folder in (whole, cut)
    ]
    assert outcomes[0] == outcomes[1]


def test_a_row_from_two_processes_is_an_error_in_both(both):
    for rank in (0, 1):
        world, said = json.loads((both[1] / f"rank-{rank}.json").read_text())
        assert world == 2
        assert said == "row 0 came from 2 processes"


@pytest.mark.parametrize(
    ("n", "align", "world"), [(9, 1, 2), (9, 4, 2), (0, 4, 3), (3, 8, 2), (1000, 64, 7), (5, 1, 8)]
)
def test_shares_are_all_rows_once_in_whole_blocks(n, align, world):
    shares = [Ranks(rank, world).share(n, align) for rank in range(world)]
    assert [row for rows in shares for row in range(n)[rows]] == list(range(n))
    assert all(rows.start % align == 0 or rows.start == n for rows in shares)


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks() == Ranks(0, 1, 0, 1)
    assert ranks().leads
