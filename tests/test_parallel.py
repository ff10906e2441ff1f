"""The stages under torchrun: two gloo processes against one, a size below the smoke profile's."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from d4lens.errors import D4LensError
from d4lens.models import weights
from d4lens.parallel import Ranks, ranks
from d4lens.train import loop

ROOT = Path(__file__).resolve().parents[1]
STAGES = ROOT / "stages"
ARM = ["--arm", "pinn", "--seed", "0"]
# Every loss and both kinds of batch normalisation, without what is random in a step.
OPTIONS = {"fields": [1, 2], "invariant_fields": [2]}

# What both sides run: the stages, with the gradients of the first step of the training kept.
COMMON = """
import json, runpy, sys
from pathlib import Path
import numpy as np
from d4lens.train.module import TrainingModule

def stage(name, *words):
    sys.argv = [name, "--profile", "smoke", *words]
    runpy.run_path(f"{STAGES}/{name}.py", run_name="__main__")

def keep(module, optimizer, clip=TrainingModule.on_before_optimizer_step):
    if module.global_rank == 0 and not Path("gradients.npz").exists():
        np.savez("gradients.npz", **{name: p.grad.numpy() for name, p in module.net.named_parameters()})
    clip(module, optimizer)
"""
TWO = """
STAGES, arm = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, STAGES)
TrainingModule.on_before_optimizer_step = keep
import torch
from d4lens.train import loop
loop.precision = lambda wanted: "64-true"
from d4lens.errors import D4LensError
from d4lens.parallel import ranks

own_ranks = ranks()
stage("download")
if own_ranks.is_main:
    stage("preprocess")
own_ranks.wait()
stage("macrofit")
stage("evaluate", *arm)
own_ranks.wait()
stage("train", *arm)
try:
    own_ranks.gather(slice(0, 2), torch.ones(2, 3), 3)
except D4LensError as error:
    Path(f"rank-{own_ranks.rank}.json").write_text(json.dumps([own_ranks.world, str(error)]))
"""

# A training of two processes, one of which gets a signal in the middle of an epoch.
RESUMED = """
import os, signal
STAGES, arm, sent, victim, epoch = sys.argv[1], *map(json.loads, sys.argv[2:])
sys.path.insert(0, STAGES)

def step(self, batch, index, whole=TrainingModule.training_step):
    if (self.global_rank, self.epoch, index) == (victim, epoch, 1):
        Path("signalled").touch()
        os.kill(os.getpid(), getattr(signal, sent))
    return whole(self, batch, index)

TrainingModule.training_step = step
stage("train", *arm)
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def project(folder: Path, batch: int, epochs: int = 1) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["train"] |= {"augment": False, "precision": "32-true", "batch_size": batch}
    values["macrofit"]["batch_size"] = 5
    values["evaluate"] |= {"batch_size": 4, "bootstrap": 100}
    values["arms"] = {"pinn": {"network": "d4lenspinn", "options": OPTIONS}}
    (folder / "profiles" / "smoke").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    own = yaml.safe_load((ROOT / "profiles" / "smoke" / "params.yaml").read_text())
    own["profile"] |= {
        "arms": ["pinn"],
        "download": {"n_train": 24, "n_val": 9},
        "preprocess": {"bin": 4},
        "train": {"epochs": epochs},
    }
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
        patch.setattr(names["TrainingModule"], "on_before_optimizer_step", names["keep"])
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


def end_of_two(folder: Path, launcher: str, sent: str = "", victim: int = -1, epoch: int = -1) -> tuple[set[int], str]:
    """Train with two processes, of which `victim` gets the signal; whatever statuses they end with, and what they say."""
    words = ["driver.py", str(STAGES), *map(json.dumps, (ARM, sent, victim, epoch))]
    commands, environments = [[sys.executable, *TORCHRUN, *words]], [{}]
    if launcher == "by hand":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        commands, environments = [[sys.executable, *words]] * 2, [meet | {"RANK": str(rank)} for rank in range(2)]
    with (folder / "said").open("w") as said:
        running = [
            subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=said, stderr=subprocess.STDOUT)
            for command, environment in zip(commands, environments)
        ]
        try:
            statuses = {process.wait(300) for process in running}
        finally:
            for process in running:  # torchrun ends its own, within half a minute
                process.terminate()
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()
    return statuses, (folder / "said").read_text()


def test_a_signal_to_either_of_two_ends_both_and_the_training_goes_on_to_the_same_bytes(both, tmp_path, monkeypatch):
    monkeypatch.setenv("D4LENS_TRACKING", "off")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        project(folder, 4, epochs=4)
        (folder / "data").symlink_to(both[1] / "data")
        (folder / "driver.py").write_text(COMMON + RESUMED)
    statuses, said = end_of_two(whole, "torchrun")
    assert statuses == {0}, said[-2000:]
    fates = [
        ("torchrun", "SIGTERM", 1),
        ("by hand", "SIGTERM", 0),
        ("torchrun", "SIGKILL", 0),
    ]
    for epoch, (launcher, sent, victim) in enumerate(fates, 1):
        statuses, said = end_of_two(cut, launcher, sent, victim, epoch)
        assert time.time() - (cut / "signalled").stat().st_mtime < 60, (launcher, sent, victim)
        assert 0 not in statuses
        assert f"train: process {victim} of 2 is gone" in said, said[-4000:]
        assert not (cut / "runs" / "smoke" / "pinn-0").exists()
    statuses, said = end_of_two(cut, "by hand")
    assert statuses == {0}, said[-2000:]
    assert "going on after epoch 3 of 4" in said
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


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks() == Ranks(0, 1, 0, 1)
    assert ranks().is_main


def test_a_rank_without_a_meeting_place_is_not_taken_for_one_process(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(D4LensError, match="RANK is set without MASTER_PORT"):
        ranks()
