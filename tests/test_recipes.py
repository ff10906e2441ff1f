"""An arm, a network and a channel added as CONTRIBUTING.md says; preset, stage and study have theirs beside their other tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import recipes
import yaml

BUILT = """
import torch
from d4lens import models
from d4lens.models.batch import LensBatch
from d4lens.observation import Observation
counts = torch.full((2, 16, 16), 40.0)
net = models.build({name!r}, Observation(16, 0.4, 0.08625, 40.0), **{options})
print(*net.eval()(LensBatch(counts, residual=torch.ones_like(counts)))["logits"].shape)
"""


@pytest.fixture
def project(tmp_path):
    """A copy of the project, and what runs a script of Python in it."""
    recipes.copy_of_project(tmp_path, "src", "stages", "tools", "profiles", "params.yaml", "dvc.yaml")

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return tmp_path, run


def arm(copy: Path, name: str) -> dict:
    return yaml.safe_load((copy / "params.yaml").read_text())["arms"][name]


def test_an_arm_is_one_file_and_the_profile_trains_it(project):
    copy, run = project
    recipes.apply_recipe("d4lenspinn_sparse", ["params.yaml"], copy)
    run("tools/profiles.py")
    trainings = yaml.safe_load((copy / "trainings.yaml").read_text())["trainings"]
    assert trainings["d4lenspinn_sparse-0"] == {"network": "d4lenspinn", "run": {"arm": "d4lenspinn_sparse", "seed": 0}}


def test_a_network_is_its_module_and_a_file_of_parameters(project):
    copy, run = project
    recipes.apply_recipe("models/linear.py", ["src/d4lens/models/linear.py", "params.yaml"], copy)
    run("tools/profiles.py")  # which checks that every arm's network has its rate
    assert run("-c", BUILT.format(name=arm(copy, "linear")["network"], options={})) == "2 3\n"


def test_a_channel_is_one_file_and_an_arm_that_reads_it(project):
    copy, run = project
    recipes.apply_recipe("snr", ["src/d4lens/models/channels.py", "params.yaml"], copy)
    added = arm(copy, "d4cnn_snr")
    assert run("-c", BUILT.format(name=added["network"], options=added["options"])) == "2 3\n"
