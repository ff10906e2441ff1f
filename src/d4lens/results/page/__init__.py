"""A profile's results as one HTML file that opens offline: no script, style, font or picture comes from elsewhere."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from d4lens import files, studies
from d4lens.classes import CLASSES, VIEWS
from d4lens.errors import D4LensError
from d4lens.files import write_text
from d4lens.models import scores
from d4lens.results import plots, predictions, tables
from d4lens.results.page import chart, facts, gallery
from d4lens.studies import outcome

Arm = tuple[str, int]

_EXPLAINED = "d4lenspinn"
_GROWING = "archive/learning_curve"
"""The results whose arms differ in their training images: the number ends the arm's name."""
_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Plot:
    """Some charts with one legend.

    Attributes
    ----------
    title : str
        Heading.
    charts : Sequence of str
        SVG elements.
    caption : str
        Sentences below.
    command : str
        What makes the charts' data.
    legend : Sequence of (str, int)
        Names and colour indices.
    """

    title: str
    charts: Sequence[str]
    caption: str
    command: str
    legend: Sequence[tuple[str, int]] = ()


def write(
    path: str | Path, root: str | Path, profile: str, arms: Sequence[Arm], declared: Sequence[str], n: int
) -> None:
    """Write the page of `profile` atomically.

    Parameters
    ----------
    path : str or Path
        The HTML file.
    root : str or Path
        The project's folder, with metrics/, runs/ and data/ of the profile.
    profile : str
        Its name.
    arms : Sequence of (str, int)
        Model and seed of the table's rows.
    declared : Sequence of str
        Studies that the profile runs, in the page's order; the others are listed as not run.
    n : int
        Images in each gallery.

    Raises
    ------
    D4LensError
        For an unknown or missing study, or results that are missing or damaged.
    """
    root = Path(root)
    results, caption, comparisons = tables.read_profile(root / "metrics" / profile)
    runs = root / "runs" / profile
    predicted = {arm: predictions.read(runs / "predicted" / f"{_name(arm)}.parquet") for arm in arms}
    head, body = tables.cells(results)
    baselines = tables.read_baselines(root / "metrics" / profile)
    below = tables.without_network(baselines) if baselines else []
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("d4lens.results.page", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["inline"] = lambda file: _inline(root, file)
    environment.filters["number"] = _number
    environment.filters["prose"] = _prose
    text = environment.get_template("page.html").render(
        profile=profile,
        headline=tables.headline(results, caption).replace("**", ""),
        head=head,
        body=body,
        compared=_lists([*below, *tables.compared(results, comparisons)]),
        plots=[
            _history(runs, arms, profile),
            *_growth(root),
            _roc(predicted, profile),
            _calibration(predicted, profile),
        ],
        confusions=_confusions(predicted),
        classes=CLASSES,
        galleries=_galleries(root, profile, predicted, n),
        studies=[_section(root / "metrics" / profile / "studies", name) for name in declared],
        not_run=[name.replace("_", " ") for name in studies.NAMES if name not in declared],
        command=f"make reproduce PROFILE={profile}",
        commit=facts.commit(root),
        facts={
            "Data": facts.of_data(root / "data" / profile / "arrays"),
            "Machine and packages": facts.of_machine(),
        },
        timing=[
            [name, times["train_minutes"], *(times["images_per_second"][view] for view in VIEWS)]
            for name, times in files.read_json(root / "metrics" / profile / "timing.json").items()
        ],
    )
    write_text(path, text)


def reliability(table: pd.DataFrame, n_bins: int = scores.ECE_BINS) -> pd.DataFrame:
    """Bin images by the probability of their answer with TTA, as the expected calibration error does.

    Parameters
    ----------
    table : pandas.DataFrame
        Predictions of one network.
    n_bins : int
        Bins of equal width in (0, 1].

    Returns
    -------
    pandas.DataFrame
        Columns confidence, accuracy, images; empty bins are left out.
    """
    _, labels, probabilities = predictions.of_view(table, "tta")
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    images = pd.DataFrame({"bin": bins, "confidence": confidence, "accuracy": right.astype(float)})
    grouped = images.groupby("bin")
    return grouped.mean().assign(images=grouped.size()).reset_index(drop=True)


def _name(arm: Arm) -> str:
    return f"{arm[0]}-{arm[1]}"


def _colours(arms: Sequence[Arm]) -> dict[str, int]:
    return {model: index for index, model in enumerate(dict.fromkeys(model for model, _ in arms))}


def _history(runs: Path, arms: Sequence[Arm], profile: str) -> Plot:
    colours = _colours(arms)
    curves: dict[str, list[chart.Line]] = {"loss": [], "select_auc_macro": []}
    for arm in arms:
        try:
            table = pd.read_csv(runs / _name(arm) / "history.csv")
        except (OSError, ValueError):
            raise D4LensError(f"{runs / _name(arm) / 'history.csv'} is missing or damaged; train it again") from None
        for column, lines in curves.items():
            shown = table[["epoch", column]].dropna()
            lines.append(chart.Line(_name(arm), shown["epoch"], shown[column], colours[arm[0]], mark=True))
    epoch = chart.Axis("epoch", whole=True)
    charts = [
        chart.line_chart("training loss", curves["loss"], epoch, chart.Axis("loss, with its penalties")),
        chart.line_chart("selection split", curves["select_auc_macro"], epoch, chart.Axis("macro AUC")),
    ]
    text = "One line a training. The epoch kept is the best on the selection split; the test split has no part in it."
    command = f"python stages/train.py --profile {profile} --arm {arms[0][0]} --seed {arms[0][1]}"
    return Plot("Training history", charts, text, command, list(colours.items()))


def _growth(root: Path) -> list[Plot]:
    """Macro AUC against training images, where that profile has results."""
    if not (root / "metrics" / _GROWING / tables.RESULTS).is_file():
        return []
    results = tables.read_results(root / "metrics" / _GROWING / tables.RESULTS)
    results = results[results["tta"]].assign(arm=results["model"].str.replace(r"_\d+$", "", regex=True))
    averaged = results.groupby(["arm", "n_train"], sort=False)["auc_macro"].mean().clip(upper=0.9999).reset_index()
    names = list(averaged["arm"].unique())
    lines = []
    for colour, name in enumerate(names):
        part = averaged[averaged["arm"] == name].sort_values("n_train")
        lines.append(chart.Line(name, part["n_train"], part["auc_macro"], colour, mark=True))
    x, y = chart.Axis("training images", scale="log"), chart.Axis("macro AUC, test split", scale="logit")
    text = f"metrics/{_GROWING}, averaged over eight views; both scales are stretched. Its own table has the intervals."
    legend = [(name, colour) for colour, name in enumerate(names)]
    drawn = chart.line_chart("AUC against training images", lines, x, y)
    return [Plot("Learning curve", [drawn], text, "make reproduce PROFILE=full_75px", legend)]


def _roc(tables: Mapping[Arm, pd.DataFrame], profile: str) -> Plot:
    colours, curves = _colours(list(tables)), plots.curves(tables)
    unit = (0.0, 1.0)
    charts = []
    for name in CLASSES:
        of_class = curves[curves["class"] == name].groupby(["model", "seed"], sort=False)
        lines = [chart.Line(_name(arm), part["fpr"], part["tpr"], colours[arm[0]]) for arm, part in of_class]
        x, y = chart.Axis("false positive rate", unit), chart.Axis("true positive rate", unit)
        charts.append(chart.line_chart(f"{name} against the rest", lines, x, y, diagonal=True))
    text = "Test split, averaged over eight views. Dashed: chance."
    return Plot("ROC", charts, text, f"python stages/table.py --profile {profile}", list(colours.items()))


def _calibration(tables: Mapping[Arm, pd.DataFrame], profile: str) -> Plot:
    colours = _colours(list(tables))
    unit = (0.0, 1.0)
    charts = []
    for model, colour in colours.items():
        lines = []
        for arm, table in tables.items():
            if arm[0] == model:
                bins = reliability(table)
                lines.append(chart.Line(_name(arm), bins["confidence"], bins["accuracy"], colour, mark=True))
        x, y = chart.Axis("probability of the answer", unit), chart.Axis("share that is right", unit)
        charts.append(chart.line_chart(model, lines, x, y, diagonal=True))
    text = (
        f"Reliability on the test split, averaged over eight views: images in {scores.ECE_BINS} bins of the probability "
        "of their answer; their mean gap from the diagonal is the ECE of the table. A point may stand for few images."
    )
    return Plot("Calibration", charts, text, f"python stages/page.py --profile {profile}")


def _confusions(tables: Mapping[Arm, pd.DataFrame]) -> dict[str, list[list[tuple[int, float]]]]:
    """For each model, rows of the true class: (images, share of the row) by the predicted class; seeds together."""
    table = plots.confusions(tables)
    found = {}
    for model, part in table.groupby("model", sort=False):
        images = part.pivot_table("images", "actual", "predicted", "sum").loc[list(CLASSES), list(CLASSES)].to_numpy()
        found[str(model)] = [[(int(count), count / row.sum()) for count in row] for row in images]
    return found


def _galleries(
    root: Path, profile: str, tables: Mapping[Arm, pd.DataFrame], n: int
) -> dict[str, tuple[str, list[gallery.Example]]]:
    """Title -> (name of the training, examples), of the first seed of the arm that draws a convergence."""
    arm = next((arm for arm in tables if arm[0] == _EXPLAINED), None)
    if arm is None:
        return {}
    right, wrong = gallery.choose(tables[arm], n)
    weights = root / "runs" / profile / _name(arm) / "model.safetensors"
    shown = gallery.examples(root / "data" / profile, weights, tables[arm], [*right, *wrong])
    return {
        "Right and surest": (_name(arm), shown[: len(right)]),
        "Wrong and surest": (_name(arm), shown[len(right) :]),
    }


def _section(folder: Path, name: str) -> dict[str, Any]:
    """One study for the template, its records as a table."""
    title = studies.load(name).title
    found = outcome.read(folder / f"{name}.json")
    labels = dict.fromkeys(label for row in found.records for label in row if label not in outcome.MEASURED)
    head = [*labels, *outcome.MEASURED]
    cells = [[row.get(label) for label in head] for row in found.records]
    return {
        "id": name,
        "short": name.replace("_", " ").capitalize(),
        "title": title,
        "study": found,
        "head": head,
        "rows": cells,
    }


def _lists(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Group lines of Markdown by the sentences that their items stand below."""
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("- "):
            found[-1][1].append(line.removeprefix("- "))
        elif line:
            found.append((line, []))
    return found


def _inline(root: Path, file: str) -> str:
    """Return a study's drawing as a data URI. Raises D4LensError for one that is missing or of a kind no browser draws."""
    path = root / file
    if path.suffix not in _TYPES or not path.is_file():
        raise D4LensError(f"a study names the figure {file}, which is missing or no SVG or PNG; run its stage again")
    return f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _prose(text: str) -> Markup:
    """Set the `code` of a sentence as such."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
