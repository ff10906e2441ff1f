"""docs/own-preset.md: the profile that it describes is accepted, in a copy of the project."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_the_profile_of_the_page_is_accepted(tmp_path):
    page = (ROOT / "docs" / "own-preset.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "profiles" / "smoke", tmp_path / "profiles" / "mine")
    path = tmp_path / "profiles" / "mine" / "params.yaml"
    values, own = yaml.safe_load(path.read_text()), yaml.safe_load(shown)["profile"]
    values |= {"overlay": "profiles/mine/params.yaml", "pages": ["mine"]}
    values["profile"] |= {**own, "name": "mine"}
    path.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "profiles.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "d4lenspinn-0" in (tmp_path / "profiles" / "mine" / "trainings.yaml").read_text()
    code = (
        "from common import parameters\nfrom d4lens.params import DownloadParams\n"
        "simulate = parameters('download', DownloadParams, 'mine').simulate\nprint(simulate.priors, simulate.train_presets)"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'stages')!r})\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{'sersic_n': 4.0, 'theta_E': [0.9, 1.6]} []\n"
