import json
import shutil
from pathlib import Path

import pytest

from d4lens import models
from d4lens.inference import pipeline
from d4lens.models import weights
from d4lens.observation import Observation

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "metrics" / "quick" / "evaluation" / "d4lenspinn-0.json"


@pytest.fixture
def project(tmp_path, monkeypatch, load_tool):
    """A folder in which the largest training is that of profile large, seed 0, whose weights are untrained."""
    monkeypatch.chdir(tmp_path)
    for profile, seed, n_train in (("quick", 0, 5_400), ("large", 1, 27_000), ("large", 0, 27_000)):
        file = Path("metrics", profile, "evaluation", f"d4lenspinn-{seed}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        scores = json.loads(QUICK.read_text())
        file.write_text(json.dumps(scores | {"profile": profile, "seed": seed, "n_train": n_train}))
    observation = Observation(75, 0.1, 0.08625, 40.0)
    model = models.build("d4lenspinn", observation)
    told = models.describe("d4lenspinn", observation, {}, model)
    told |= {"n_train": 27_000, "seed": 0, "epoch": 1, "fingerprint": "f" * 64, "versions": {}}
    weights.write(Path("runs/large/d4lenspinn-0/model.safetensors"), models.state(model), told)
    Path("data/large/macrofit").mkdir(parents=True)
    Path("data/large/macrofit/train_fit.csv").write_text("chi2\n" + "\n".join(["1.0"] * 999 + ["1.3"]))
    shipped = tmp_path / "package.safetensors"
    monkeypatch.setattr(pipeline, "WEIGHTS", shipped)
    Path("docs").mkdir()
    tool = load_tool(ROOT / "tools" / "ship.py")
    return tool, shipped


def test_the_largest_training_ships_with_its_card(project):
    tool, shipped = project
    tool.ship()
    _, description = weights.read(shipped)
    assert (description["profile"], description["seed"], description["licence"]) == ("large", 0, "MIT")
    assert description["options"]["unet_kind"] == "exported"
    assert 1.0 <= description["largest_chi2"] <= 1.3
    card = Path("docs/model-card.md").read_text()
    assert "profile `large`, seed 0" in card
    assert "Until its" not in card


def test_another_training_than_the_evaluated_one_is_refused_and_nothing_written(project, monkeypatch):
    tool, shipped = project
    shipped.write_bytes(b"as before")
    monkeypatch.setattr("sys.argv", ["ship.py"])
    scores = Path("metrics/large/evaluation/d4lenspinn-0.json")
    scores.write_text(scores.read_text().replace("27000", "26999"))
    Path("metrics/large/evaluation/d4lenspinn-1.json").unlink()
    with pytest.raises(SystemExit) as refused:
        tool.main()
    assert "has 27,000 training images, its evaluation in metrics/large has 26,999" in refused.value.code
    shutil.rmtree("runs")
    with pytest.raises(SystemExit) as refused:
        tool.main()
    assert refused.value.code == (
        "ship: the largest training is profile large, seed 0, with 26,999 images, and "
        "runs/large/d4lenspinn-0/model.safetensors is missing; run make reproduce PROFILE=large"
    )
    assert shipped.read_bytes() == b"as before"
    assert not list(Path("docs").iterdir())


def test_no_profile_can_be_named(project, monkeypatch):
    tool, _ = project
    monkeypatch.setattr("sys.argv", ["ship.py", "--profile", "quick"])
    with pytest.raises(SystemExit) as refused:
        tool.main()
    assert refused.value.code == 2
