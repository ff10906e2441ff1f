import json
import shutil
from pathlib import Path

import pytest

from d4lens import models
from d4lens.errors import D4LensError
from d4lens.inference import pipeline
from d4lens.models import weights
from d4lens.observation import Observation
from d4lens.results import card

ROOT = Path(__file__).resolve().parents[2]
FINGERPRINT = "f" * 64
QUICK = ROOT / "metrics" / "quick" / "evaluation" / "d4lenspinn-0.json"


@pytest.fixture
def project(tmp_path, monkeypatch, load_tool):
    """A folder in which the largest training is that of profile large, seed 0, whose weights are untrained."""
    monkeypatch.chdir(tmp_path)
    for profile, seed, n_train in (("quick", 0, 5_400), ("large", 1, 27_000), ("large", 0, 27_000)):
        file = Path("metrics", profile, "evaluation", f"d4lenspinn-{seed}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        scores = json.loads(QUICK.read_text())
        file.write_text(
            json.dumps(scores | {"profile": profile, "seed": seed, "n_train": n_train, "fingerprint": FINGERPRINT})
        )
    observation = Observation(75, 0.1, 0.08625, 40.0)
    model = models.build("d4lenspinn", observation)
    description = models.describe("d4lenspinn", observation, {}, model)
    description |= {"n_train": 27_000, "seed": 0, "epoch": 1, "fingerprint": FINGERPRINT, "versions": {}}
    weights.write(Path("runs/large/d4lenspinn-0/model.safetensors"), models.state(model), description)
    Path("data/large/macrofit").mkdir(parents=True)
    Path("data/large/macrofit/train_fit.csv").write_text(
        "chi2,converged\n" + "\n".join(["1.0,True"] * 999 + ["1.3,True", "9.0,False"])
    )
    shipped = tmp_path / "package.safetensors"
    monkeypatch.setattr(pipeline, "WEIGHTS", shipped)
    monkeypatch.setattr(card, "SURVEY_WEIGHTS", tmp_path / "none.safetensors")
    Path("docs").mkdir()
    tool = load_tool(ROOT / "tools" / "publish.py")
    monkeypatch.setattr(tool, "needed", lambda data, network: 0.8)  # there is no selection split
    return tool, shipped


def test_the_largest_training_ships_with_its_card(project):
    tool, shipped = project
    tool.publish("specialist")
    _, description = weights.read(shipped)
    assert (description["profile"], description["seed"], description["licence"]) == ("large", 0, "MIT")
    assert description["options"]["unet_kind"] == "exported"
    assert 1.0 <= description["largest_chi2"] <= 1.3
    assert description["decided"] == 0.8
    card = Path("docs/model-card.md").read_text()
    assert "profile `large`, seed 0" in card
    assert "Until it is" not in card


def test_another_training_than_the_evaluated_one_is_refused_and_nothing_written(project, monkeypatch):
    tool, shipped = project
    shipped.write_bytes(b"as before")
    monkeypatch.setattr("sys.argv", ["publish.py", "--ship"])
    scores = Path("metrics/large/evaluation/d4lenspinn-0.json")
    scores.write_text(scores.read_text().replace(FINGERPRINT, "e" * 64))
    with pytest.raises(SystemExit) as refused:
        tool.main()
    assert (
        "has the fingerprint ffffffffffffffff, its evaluation in metrics/ was made with eeeeeeeeeeeeeeee"
        in refused.value.code
    )
    shutil.rmtree("runs")
    with pytest.raises(SystemExit) as refused:
        tool.main()
    assert refused.value.code == (
        "publish: the largest training is profile large, seed 0, with 27,000 images, and "
        "runs/large/d4lenspinn-0/model.safetensors is missing; run make reproduce PROFILE=large"
    )
    assert shipped.read_bytes() == b"as before"
    assert not list(Path("docs").iterdir())


def test_a_card_of_one_network_beside_the_scores_of_another_is_refused_and_nothing_written(project, monkeypatch):
    """After a reproduction the package still holds the network that was trained before."""
    tool, _ = project
    tool.publish("specialist")
    card = Path("docs/model-card.md").read_bytes()
    Path("README.md").write_text("<!--n large/evaluation/none value .2f-->1<!--/n-->")  # would not be reached either
    scores = Path("metrics/large/evaluation/d4lenspinn-0.json")
    scores.write_text(scores.read_text().replace(FINGERPRINT, "e" * 64).replace("0.99", "0.12"))
    monkeypatch.setattr("sys.argv", ["publish.py"])
    with pytest.raises(SystemExit) as refused:
        tool.main()
    assert "the network of profile large has the fingerprint ffffffffffffffff" in refused.value.code
    assert "make publish SHIP=1" in refused.value.code
    assert Path("docs/model-card.md").read_bytes() == card


def test_an_evaluation_that_does_not_say_whose_it_is_is_refused(project):
    tool, _ = project
    scores = Path("metrics/large/evaluation/d4lenspinn-0.json")
    scores.write_text(scores.read_text().replace(f'"fingerprint": "{FINGERPRINT}"', '"note": ""'))
    with pytest.raises(D4LensError, match="was made with none"):
        tool.publish("specialist")


def test_no_profile_can_be_named(project, monkeypatch):
    tool, _ = project
    monkeypatch.setattr("sys.argv", ["publish.py", "--profile", "quick"])
    with pytest.raises(SystemExit) as refused:
        tool.main()
    assert refused.value.code == 2
