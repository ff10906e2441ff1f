"""A reproduction in MLflow: one parent run over its trainings, and the trained d4lenspinn as a registered model.

All of it is copied from files that the pipeline wrote, so a run restored from DVC's cache, or one whose tracking was
off, is shown like one trained just now.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from importlib.resources import files as packaged
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from d4lens import files
from d4lens.data import arrays
from d4lens.files import sha256
from d4lens.models import weights
from d4lens.results import card, predictions, tables
from d4lens.simulator import draw, preset, render
from d4lens.table_files import PROBABILITIES
from d4lens.tracking import NOTE, Tracker, enabled, run_tags, uri
from d4lens.tracking import store as places

_FINGERPRINT = "fingerprint"
_SERVED = Path(str(packaged("d4lens"))) / "inference" / "served.py"
_LINK = re.compile(r"\[([^\]]+)\]\((\.\./)?([\w-]+\.md)(?:#[\w-]+)?\)")
"""A link of the card, which lies in docs/, to another document."""
_DOCUMENTS = "documents"

_log = logging.getLogger(__name__)


def mirror_profile(root: str | Path, profile: str, arms: Sequence[tuple[str, int]], page: str | Path) -> None:
    """Show a reproduction as one run with a child for each training, and register the model. What fails is one warning.

    Parameters
    ----------
    root : str or Path
        The project's folder.
    profile : str
        What was reproduced.
    arms : Sequence of (str, int)
        Its trainings as (arm, seed).
    page : str or Path
        The page's path below `root`, shown where it exists.
    """
    if not enabled():
        return
    try:
        _mirror(Path(root), profile, arms, Path(page))
    except Exception as error:  # the results stand in metrics/; nothing here may take them from the user
        _log.warning(
            "MLflow does not show this reproduction (%s); the metrics files are not affected", places.one_line(error)
        )


def register(root: str | Path, file: Path, run_id: str, profile: str) -> None:
    """Register weights as a new version of the model `card.MODEL`; once for equal weights.

    Its signature takes float64 images (n, N, N) to label, probabilities, chi2 and flag. The code is `served.py`, no pickle.

    Parameters
    ----------
    root : str or Path
        The project's folder.
    file : Path
        The weights.
    run_id : str
        The run that trained them.
    profile : str
        Becomes the version's alias.
    """
    _, description = weights.read(file)
    client = places.client(Path(root).resolve())
    known = client.search_model_versions(f"name = '{card.MODEL}'")
    if any(version.tags.get(_FINGERPRINT) == description["fingerprint"] for version in known):
        return
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    lenses = preset("deeplense")
    example = render(draw(lenses, 0, range(1)), lenses).numpy().astype("float64")
    numbers = [*PROBABILITIES, "chi2"]
    answer: list[ColSpec | TensorSpec]
    answer = [ColSpec("string", "label"), *(ColSpec("double", name) for name in numbers), ColSpec("string", "flag")]
    inputs, switch = (
        Schema([TensorSpec(example.dtype, (-1, -1, -1))]),
        ParamSchema([ParamSpec("model", "string", "auto")]),
    )
    signature = ModelSignature(inputs, Schema(answer), switch)
    before, ended = mlflow.get_tracking_uri(), client.get_run(run_id).info.end_time
    mlflow.set_tracking_uri(uri(root))
    try:
        # it tells the terminal what it does, and tries the example with our progress bar
        with redirect_stderr(StringIO()), mlflow.start_run(run_id=run_id, log_system_metrics=False):
            logged = mlflow.pyfunc.log_model(
                name=card.MODEL,
                python_model=str(_SERVED),
                artifacts={"weights": str(file)},
                signature=signature,
                input_example=example,
                pip_requirements=["d4lens"],
                registered_model_name=card.MODEL,
            )
    finally:
        mlflow.set_tracking_uri(before)
        client.set_terminated(run_id, end_time=ended)  # not when the model was registered
    version = str(logged.registered_model_version)
    client.set_model_version_tag(card.MODEL, version, _FINGERPRINT, description["fingerprint"])
    client.update_model_version(card.MODEL, version, _card(Path(root), description, profile, run_id))
    client.set_registered_model_alias(card.MODEL, profile, version)


def _mirror(root: Path, profile: str, arms: Sequence[tuple[str, int]], page: Path) -> None:
    runs, metrics = root / "runs" / profile, root / "metrics" / profile
    trained = {arm: weights.read(runs / f"{arm[0]}-{arm[1]}" / "model.safetensors")[1] for arm in arms}
    images = sha256(root / "data" / profile / "arrays" / arrays.MANIFEST)
    tags = run_tags(root, "table", profile, "", 0, images)
    commit = tags.get("git_commit", "no git")
    parts = [profile, sha256(metrics / tables.AUC_JSON), *(one[_FINGERPRINT] for one in trained.values())]
    name = f"{profile} @ {commit[:7]}{'-dirty' if commit.endswith('-dirty') else ''}"
    tags = {key: value for key, value in tags.items() if key not in ("arm", "seed")}
    results, caption, _ = tables.read_profile(metrics)
    tags[NOTE] = f"A reproduction of profile `{profile}`.\n\n{tables.results_markdown(results, caption, ())}"
    took = {arm: _seconds(runs, arm, int(results["n_test"].iloc[0])) for arm in trained}
    arguments = True, root, f"d4lens-{profile}", name, hashlib.sha256("\n".join(parts).encode()).hexdigest()
    with Tracker(*arguments, _scale(metrics), tags, watch=False, seconds=sum(took.values())) as parent:
        for path in (metrics / tables.RESULTS, root / page):
            if path.exists():
                parent.log_artifact(path)
        for arm, description in trained.items():
            run_id = _child(root, profile, arm, description, images, parent.run_id, took[arm])
            if arm == next((arm for arm in arms if arm[0] == card.MODEL), None) and run_id is not None:
                register(root, runs / f"{arm[0]}-{arm[1]}" / "model.safetensors", run_id, profile)


def _seconds(runs: Path, arm: tuple[str, int], n_test: int) -> float:
    """Read what the training and evaluation of an arm took."""
    timing = files.read_json(runs / "evaluation" / f"{arm[0]}-{arm[1]}" / "timing.json")
    return predictions.seconds(timing["train_minutes"], timing["images_per_second"], n_test)


def _scale(metrics: Path) -> dict[str, Any]:
    """Read from the profile's table what it was made with."""
    first = tables.read_results(metrics / tables.RESULTS).iloc[0]
    return {name: int(first[name]) for name in ("n_train", "n_test", "n_pixels", "epochs")}


def _child(
    root: Path,
    profile: str,
    arm: tuple[str, int],
    description: Mapping[str, Any],
    images: str,
    parent: str | None,
    seconds: float,
) -> str | None:
    """Show the run of one training below `parent`, made from its files where tracking missed it; return its id."""
    name, scored = f"{arm[0]}-{arm[1]}", root / "metrics" / profile / "evaluation"
    runs = root / "runs" / profile
    params = {"arm": {"network": description["name"], "options": description["options"]}, "seed": arm[1]}
    tags = run_tags(root, "train", profile, *arm, images)
    arguments = True, root, f"d4lens-{profile}", f"{profile}/{name}", description[_FINGERPRINT], params, tags
    with Tracker(*arguments, watch=False, seconds=seconds) as run:
        run.adopt(parent)
        for row in pd.read_csv(runs / name / "history.csv", float_precision="round_trip").to_dict("records"):
            shown = {str(key): float(value) for key, value in row.items() if key != "epoch" and value == value}
            run.log_metrics(shown, step=int(row["epoch"]))
        evaluation = files.read_json(scored / f"{name}.json")
        run.log_metrics(predictions.flat(evaluation))
        if not run.found:
            drawn = runs / "evaluation" / name
            for path in (
                drawn / "roc.svg",
                drawn / "confusion.svg",
                runs / "predicted" / f"{name}.parquet",
                scored / f"{name}.json",
            ):
                run.log_artifact(path, "evaluation")
        if arm[0] == card.MODEL:
            if run.run_id is not None:
                run.log_text(_card(root, description, profile, run.run_id), card.FILE)
            for path in _linked(root, card.model_card(description, profile, root / "metrics")):
                run.log_artifact(path, _DOCUMENTS)
    return run.run_id


def _linked(root: Path, text: str) -> list[Path]:
    """List the documents that a card links and that are there."""
    named = {root / ("" if up else "docs") / name for _, up, name in _LINK.findall(text)}
    return sorted(path for path in named if path.is_file())


def _card(root: Path, description: Mapping[str, Any], profile: str, run_id: str) -> str:
    """Write the card with its links to the copies of the documents among the artefacts of `run_id`."""
    text = card.model_card(description, profile, root / "metrics")
    known = {path.name for path in _linked(root, text)}
    run = f"#/experiments/{places.client(root.resolve()).get_run(run_id).info.experiment_id}/runs/{run_id}"

    def there(link: re.Match[str]) -> str:
        title, _, name = link.groups()
        return f"[{title}]({run}/artifacts/{_DOCUMENTS}/{name})" if name in known else title

    return _LINK.sub(there, text)
