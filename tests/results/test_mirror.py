import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest

from d4lens.cli import main
from d4lens.files import write_json
from d4lens.inference.pipeline import default_weights
from d4lens.models import scores, weights
from d4lens.results import card, mirror, tables
from d4lens.simulator import draw, preset, render
from d4lens.tracking import DATABASE
from d4lens.tracking import store as places

ARMS = [("d4lenspinn", 0)]
EXPERIMENT = "d4lens-small"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project in which profile `small` trained one arm while nobody watched, shown afterwards, and once more."""
    root = tmp_path_factory.mktemp("project")
    trained = root / "runs" / "small" / "d4lenspinn-0"
    trained.mkdir(parents=True)
    shutil.copy(default_weights(), trained / "model.safetensors")
    history = {"epoch": [1, 2], "loss": [1.1, 0.9], "select_auc_macro": [0.1 + 0.2, 0.8]}
    pd.DataFrame(history).to_csv(trained / "history.csv", index=False)
    measured = {name: {"value": 0.9, "low": 0.8, "high": 0.95} for name in scores.METRICS}
    fingerprint = weights.read(default_weights())[1]["fingerprint"]
    sizes = {"fingerprint": fingerprint, "n_train": 9, "n_test": 6, "params": 10, "n_pixels": 75, "epochs": 2}
    evaluation = {"profile": "small", "arm": "d4lenspinn", "seed": 0, **sizes, "plain": measured, "tta": measured}
    folder = root / "metrics" / "small"
    write_json(folder / "evaluation" / "d4lenspinn-0.json", evaluation)
    tables.write_profile(folder, tables.table(tables.rows(evaluation, 1.0)), "Small.", [])
    took = {"train_minutes": 1.5, "images_per_second": {"plain": 2.0, "tta": 0.5}}
    write_json(root / "runs" / "small" / "evaluation" / "d4lenspinn-0" / "timing.json", took)
    for name in ("roc.svg", "confusion.svg"):
        (root / "runs" / "small" / "evaluation" / "d4lenspinn-0" / name).write_text("<svg/>")
    (root / "DATA.md").write_text("# Data\n")
    (root / "data" / "small" / "arrays").mkdir(parents=True)
    (root / "data" / "small" / "arrays" / "manifest.csv").write_text("split,row\n")
    for _ in range(2):
        mirror.mirror_profile(root, "small", ARMS, "reports/report.html")
    return root


def runs(root):
    client = places.client(root)
    found = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    return client, {run.info.run_name: run for run in found}


def test_one_run_stands_over_its_trainings_however_often_it_is_shown(project):
    client, found = runs(project)
    assert set(found) == {"small @ no git", "small/d4lenspinn-0"}
    parent, child = found["small @ no git"], found["small/d4lenspinn-0"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics == {}
    assert "| d4lenspinn |" in parent.data.tags["mlflow.note.content"]
    assert "Arm `d4lenspinn`, seed 0" in child.data.tags["mlflow.note.content"]
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert "test_auc_macro" in experiment.tags["mlflow.note.content"]
    assert parent.data.params == {"n_train": "9", "n_test": "6", "n_pixels": "75", "epochs": "2"}
    assert child.data.metrics["test_ece_one_view"] == child.data.metrics["test_auc_macro"] == 0.9
    assert child.data.metrics["test_auc_macro_high"] == 0.95
    history = client.get_metric_history(child.info.run_id, "select_auc_macro")
    assert [(row.step, row.value) for row in history] == [(1, 0.1 + 0.2), (2, 0.8)]
    assert not any(name.startswith("system/") for name in child.data.metrics)
    for run in (parent, child):
        assert run.info.status == "FINISHED"
        # a minute and a half of training, 6 images at 2 and at 0.5 a second; not when the model was registered
        assert run.info.end_time - run.info.start_time == 1000 * (90 + 3 + 12)
        assert run.inputs.dataset_inputs[0].dataset.name == "small"
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"results.csv"}
    files = {file.path for file in client.list_artifacts(child.info.run_id)}
    assert files == {card.FILE, "documents", "evaluation"}
    card_there = client.get_model_version(card.MODEL, "1").description
    assert "](../" not in card_there
    assert "](your-images.md" not in card_there
    there = f"#/experiments/{experiment.experiment_id}/runs/{child.info.run_id}/artifacts/documents/DATA.md"
    assert f"[DATA.md]({there})" in card_there
    assert [file.path for file in client.list_artifacts(child.info.run_id, "documents")] == ["documents/DATA.md"]


def test_the_registered_model_answers_as_the_command_line_does(project, tmp_path):
    client = places.client(project)
    (version,) = client.search_model_versions(f"name = '{card.MODEL}'")
    assert int(version.version) == 1
    assert version.description.startswith("# Model card: d4lenspinn")
    lenses = preset("deeplense")
    counts = render(draw(lenses, 9, range(6)), lenses).numpy().astype(np.float64)
    images = np.stack([counts[0], *((one - one.min()) / (one.max() - one.min()) for one in counts[1:])])
    for row, image in enumerate(images):
        np.save(tmp_path / f"{row}.npy", image)
    assert main(["predict", str(tmp_path), "-o", str(tmp_path / "answer.csv")]) == 0
    written = pd.read_csv(tmp_path / "answer.csv")

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{project / DATABASE}")
    try:
        model = mlflow.pyfunc.load_model(f"models:/{card.MODEL}@small")
        answer = model.predict(images)
    finally:
        mlflow.set_tracking_uri(before)
    assert answer["label"].tolist() == written["label"].tolist()
    columns = ["p_no", "p_sphere", "p_vort", "chi2"]
    np.testing.assert_allclose(answer[columns], written[columns], rtol=1e-5)
    assert model.metadata.signature.inputs.input_types() == [np.dtype("float64")]
    assert model.input_example.shape == (1, 150, 150)
    stored = {path.suffix for path in (project / "mlartifacts").rglob("*") if path.is_file()}
    assert not stored & {".pkl", ".pickle", ".pt", ".pth"}


def test_what_cannot_be_shown_is_one_warning(project, tmp_path, caplog, monkeypatch):
    mirror.mirror_profile(tmp_path, "small", ARMS, "reports/report.html")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "model.safetensors" in caplog.text
    caplog.clear()
    monkeypatch.setenv("D4LENS_TRACKING", "off")
    mirror.mirror_profile(tmp_path, "small", ARMS, "reports/report.html")
    assert not caplog.records
    assert list(tmp_path.iterdir()) == []


def test_the_card_tells_the_weights_and_their_scores(project):
    _, description = weights.read(default_weights())
    text = card.model_card(description, "small", project / "metrics")
    assert f"{description['n_parameters']:,} parameters" in text
    assert description["fingerprint"][:16] in text
    assert "| accuracy | 0.9000 [0.8000, 0.9500] | 0.9000 [0.8000, 0.9500] |" in text
    assert "On 6 test images" in text
