import json
import subprocess
import sys
from pathlib import Path

import pytest

from d4lens import studies

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "kill_campaign.py"


@pytest.fixture(scope="module")
def campaign(load_tool):
    return load_tool(SCRIPT)


def test_stages_killed_at_random_moments_end_in_the_undisturbed_bytes(tmp_path):
    """`tools/kill_campaign.py` in small: three stages, a kill each; training's own kills are in tests/train."""
    size = ["--kills", "1", "--images", "24", "9", "--bin", "4", "--stages", "download", "preprocess", "macrofit"]
    command = [sys.executable, str(SCRIPT), *size, "--out", str(tmp_path / "tally.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tally = {row["stage"]: row["killed"] for row in json.loads((tmp_path / "tally.json").read_text())}
    assert tally == {"download": 1, "preprocess": 1, "macrofit": 1}


def test_every_study_is_among_its_stages_with_what_it_writes(campaign):
    assert {f"study@{name}" for name in studies.STUDY_NAMES} < set(campaign.STAGES)
    study = campaign.PIPELINE["study@probing"]
    assert study["command"] == ["stages/study.py", "--profile", "smoke", "--study", "probing"]
    assert study["outputs"] == ["metrics/smoke/studies/probing.json", "plots/smoke/studies/probing"]


def test_what_differs_or_is_left_over_is_seen(campaign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = campaign.TOPS[0] / "arrays"
    arrays.mkdir(parents=True)
    (arrays / "test.npy").write_bytes(b"whole")
    (arrays / "timing.json").write_bytes(b"1")
    before = campaign.digests([arrays])
    (arrays / "timing.json").write_bytes(b"2")
    assert campaign.digests([arrays]) == before
    (arrays / "test.npy").write_bytes(b"half")
    assert campaign.digests([arrays]) != before
    assert campaign.litter() == set()
    (campaign.TOPS[0] / ".macrofit.lock").touch()
    (arrays / ".test.01234567.npy").touch()
    assert campaign.litter() == {str(arrays / ".test.01234567.npy")}
