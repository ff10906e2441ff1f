import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binomtest

from d4lens.inference.pipeline import WEIGHTS
from d4lens.models.weights import read

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "genuine.py"


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the package's weights are not built yet")
def test_what_the_package_s_network_makes_of_genuine_images_is_told_with_its_interval(real_samples, tmp_path):
    trained = tmp_path / "runs" / "quick" / "d4lenspinn-0" / "model.safetensors"
    trained.parent.mkdir(parents=True)
    shutil.copy(WEIGHTS, trained)
    done = run(tmp_path, real_samples)
    assert done.returncode == 0, done.stderr
    study = json.loads((tmp_path / "metrics" / "quick" / "genuine.json").read_text())
    (right,) = (r for r in study["records"] if r["quantity"] == "right" and r["class"] == "all")
    hits = round(15 * right["value"])
    assert f"{hits} of 15 right" in done.stdout
    wilson = binomtest(hits, 15).proportion_ci(method="wilson")
    assert (right["ci_low"], right["ci_high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-6)
    assert right["weights"] == read(WEIGHTS)[1]["fingerprint"]


def test_without_a_trained_network_it_says_what_to_run(tmp_path):
    done = run(tmp_path, tmp_path, "--profile", "smoke")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "genuine: runs/smoke holds no trained network; run make reproduce PROFILE=smoke first"
    )
