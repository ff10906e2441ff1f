import json
import shutil
from pathlib import Path

import pytest

from d4lens.errors import D4LensError
from d4lens.inference.pipeline import default_weights
from d4lens.models import weights
from d4lens.results import card, outcome

METRICS = Path(__file__).resolve().parents[2] / "metrics"


@pytest.fixture
def description():
    return weights.read(default_weights())[1]


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A package without the second network."""
    monkeypatch.setattr(card, "SURVEY_WEIGHTS", tmp_path / "survey.safetensors")


def evaluation(folder: Path, profile: str, name: str, n_train: int, seed: int, **more: str) -> None:
    path = folder / profile / "evaluation" / f"{name}-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"profile": profile, "n_train": n_train, "seed": seed, **more}))


def test_the_largest_training_ships_and_of_equals_the_lowest_seed(tmp_path):
    evaluation(tmp_path, "large", "d4lenspinn_published", 90_000, 0)
    evaluation(tmp_path, "a_third_seed", "d4lenspinn", 27_000, 2)
    evaluation(tmp_path, "large", "d4lenspinn", 27_000, 1)
    evaluation(tmp_path, "large", "d4lenspinn", 27_000, 0)
    evaluation(tmp_path, "quick", "d4lenspinn", 5_400, 0)
    largest = card.largest_training(tmp_path)
    assert (largest["profile"], largest["arm"], largest["seed"]) == ("large", "d4lenspinn", 0)
    evaluation(tmp_path, "large", "d4lenspinn_every_angle", 40_500, 1)
    assert card.largest_training(tmp_path)["arm"] == "d4lenspinn_every_angle"
    (tmp_path / "large" / "evaluation" / "d4lenspinn_every_angle-1.json").unlink()
    with pytest.raises(D4LensError, match="holds no evaluation of d4lenspinn; run make reproduce"):
        card.largest_training(tmp_path / "quick")


@pytest.mark.usefixtures("alone")
def test_a_second_network_has_a_section_of_its_own_and_scores_of_its_own(tmp_path, description):
    metrics = tmp_path / "metrics"
    shutil.copytree(METRICS / description["profile"], metrics / description["profile"])
    alone = card.of_package(metrics)
    tensors, _ = weights.read(default_weights())
    its = description | {"profile": "survey", "arm": "d4lenspinn_survey", "fingerprint": "e" * 64, "n_train": 2700}
    weights.write(card.SURVEY_WEIGHTS, tensors, its)
    evaluation(metrics, "survey", "d4lenspinn_survey", 2700, description["seed"], fingerprint="f" * 64)
    with pytest.raises(D4LensError, match=f"survey has the fingerprint {'e' * 16}, its evaluation .* {'f' * 16}"):
        card.of_package(metrics)
    evaluation(metrics, "survey", "d4lenspinn_survey", 2700, description["seed"], fingerprint="e" * 64)
    text = card.of_package(metrics)
    assert text.startswith(alone)
    section = " ".join(text.removeprefix(alone).split())
    assert "arm `d4lenspinn_survey` of profile `survey`" in section
    assert f"`{'e' * 16}`, with {description['n_parameters']:,} parameters and 2,700 training images" in section
    assert "The second network" not in alone


def test_the_rule_knows_nothing_of_genuine_images(tmp_path):
    evaluation(tmp_path, "quick", "d4lenspinn", 5_400, 0)
    evaluation(tmp_path, "large", "d4lenspinn", 27_000, 0)
    before = card.largest_training(tmp_path)
    (tmp_path / "large" / "genuine.json").write_text("{}")
    shutil.copy(METRICS / "quick" / "genuine.json", tmp_path / "quick")
    assert card.largest_training(tmp_path) == before


@pytest.mark.usefixtures("alone")
def test_the_card_says_that_another_training_is_due(tmp_path, description):
    shutil.copytree(METRICS / description["profile"], tmp_path / description["profile"])
    scores = tmp_path / description["profile"] / "evaluation" / f"d4lenspinn-{description['seed']}.json"
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"fingerprint": description["fingerprint"]}))
    due = "Until it is trained again the package keeps this network."
    evaluation(tmp_path, "larger", "d4lenspinn", 10 * description["n_train"], 3)
    text = card.of_package(tmp_path)
    assert due in " ".join(text.split())
    assert f"profile `larger`, arm `d4lenspinn`, seed 3, with {10 * description['n_train']:,} images" in text
    shutil.rmtree(tmp_path / "larger")
    assert "Until it is" not in card.of_package(tmp_path)


def test_the_card_reports_genuine_images_of_these_weights_alone(tmp_path, description):
    right = outcome.record(14 / 15, 0.701835, 0.988133, 15, quantity="right") | {"class": "all"}
    auc = outcome.record(1, 1, 1, 15, quantity="auc_macro")
    path = tmp_path / "genuine.json"

    def sentence(**more):
        outcome.write_outcome(path, outcome.Outcome("", [], [], [auc, right | more]))
        return card.genuine_sentence(description, path)

    assert sentence(weights=description["fingerprint"]) == (
        "It labels 14 of 15 genuine images of the published set correctly: a share of 0.70 to 0.99 (95 %, Wilson)."
    )
    assert sentence(weights="another") == sentence() == "It was tried on no genuine image."
    path.unlink()
    assert card.genuine_sentence(description, path) == "It was tried on no genuine image."
