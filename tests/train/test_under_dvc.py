"""DVC killed while its trainer lives on: what that has trained is not trained again."""

import json
import os
import subprocess
import sys

from d4lens.errors import D4LensError
from d4lens.files import sole_writer

STAGE = """
import json, sys, time
from pathlib import Path
from d4lens.params import TrainParams
from d4lens.train import train_network

class Gate:
    def log_metrics(self, metrics, step):
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.05)

folder, fits, params = json.loads(Path("given.json").read_text())
train_network(folder, fits, "out", "work", "d4cnn", {"fields": [1, 2]}, 1, TrainParams(**params), Gate())
"""
PIPELINE = "stages:\n  train:\n    cmd: python stage.py\n    deps: [stage.py]\n    outs: [out]\n"
PATIENCE = 240.0


def free(folder) -> bool:
    try:
        with sole_writer(folder):
            return True
    except D4LensError:
        return False


def test_a_trainer_that_outlives_its_dvc_has_not_worked_for_nothing(dataset, tmp_path, params, wait_for):
    root = tmp_path / "project"
    root.mkdir()
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "given.json").write_text(json.dumps([*map(str, dataset), params(epochs=2).model_dump()]))
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    dvc = {"cwd": root, "env": os.environ | {"DVC_NO_ANALYTICS": "1", "PATH": path}, "text": True}
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True, **dvc)
    command = [sys.executable, "-m", "dvc", "repro"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **dvc)
    try:
        wait_for((root / "begun").exists)
        first.kill()
        first.wait()
    finally:
        (root / "go").touch()
    wait_for(lambda: free(root / "work"))
    trained = (root / "out" / "model.safetensors").read_bytes()
    assert not (root / "dvc.lock").exists()

    again = subprocess.run(command, capture_output=True, timeout=PATIENCE, **dvc)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "trained already" in again.stderr
    assert "epoch 1" not in again.stderr
    assert (root / "out" / "model.safetensors").read_bytes() == trained
    assert (root / "dvc.lock").exists()
