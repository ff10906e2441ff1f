"""A profile's results as one HTML file that opens offline: no script, style, font or picture comes from elsewhere."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as packaged
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from d4lens import files
from d4lens.classes import CLASSES, VIEWS
from d4lens.errors import D4LensError
from d4lens.files import write_text
from d4lens.models import scores
from d4lens.results import charts, outcome, plots, predictions, tables
from d4lens.results.page import facts, gallery

_EXPLAINED = "d4lenspinn"
_GROWING = "archive/learning_curve"
"""The results whose arms differ in their training images: the number ends the arm's name."""
N_COLOURS = 12
"""How many colours of arms the style sheet names: --c0 to --c11."""
_VIEWS = {"plain": "one view", "tta": "mean of eight views"}


@dataclass(frozen=True)
class Plot:
    """Charts under one heading.

    Attributes
    ----------
    title : str
        Heading.
    specs : Sequence of Mapping
        What is drawn, as Vega-Lite with its data.
    caption : str
        Sentences below.
    command : str
        What makes the charts' data.
    """

    title: str
    specs: Sequence[charts.Spec]
    caption: str
    command: str


def write_page(
    path: str | Path,
    root: str | Path,
    profile: str,
    arms: Sequence[tuple[str, int]],
    studies: Mapping[str, bool],
    n: int,
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
        Arm and seed of the table's rows.
    studies : mapping of str to bool
        All studies, in the page's order, and whether the profile runs them; the others are listed as not run.
    n : int
        Images in each gallery.

    Raises
    ------
    D4LensError
        For a study that has not run, or results that are missing or damaged.
    """
    root = Path(root)
    results, caption, comparisons = tables.read_profile(root / "metrics" / profile)
    runs = root / "runs" / profile
    predicted = {arm: predictions.read_predictions(runs / "predicted" / f"{_name(arm)}.parquet") for arm in arms}
    colours = {
        name: f"var(--c{index % N_COLOURS})"
        for index, name in enumerate(dict.fromkeys([*(arm for arm, _ in arms), *results["arm"], *tables.ARM_ORDER]))
    }
    head, body = tables.cells(results)
    baselines = tables.read_baselines(root / "metrics" / profile)
    below = tables.without_network(baselines) if baselines else []
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("d4lens.results.page", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = _number
    environment.filters["prose"] = _prose
    text = environment.get_template("page.html").render(
        profile=profile,
        headline=tables.headline(results, caption).replace("**", ""),
        forest=_forest(results, colours, profile),
        head=head,
        body=body,
        compared=_lists([*below, *tables.compared(results, comparisons)]),
        plots=[
            _history(runs, arms, colours, profile),
            *_growth(root, colours),
            _roc(predicted, colours, profile),
            _calibration(predicted, colours, profile),
        ],
        confusions=_confusions(predicted),
        classes=CLASSES,
        galleries=_galleries(root, profile, predicted, n),
        studies=[_section(root, profile, name, colours) for name, ran in studies.items() if ran],
        not_run=[name.replace("_", " ") for name, ran in studies.items() if not ran],
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
        library=Markup(_library()),
    )
    write_text(path, text)


def reliability(table: pd.DataFrame) -> pd.DataFrame:
    """Bin images by the probability of their answer with TTA, as the expected calibration error does.

    Parameters
    ----------
    table : pandas.DataFrame
        Predictions of one network.

    Returns
    -------
    pandas.DataFrame
        Columns confidence, accuracy, images, and the bin's ends low and high; empty bins are left out.
    """
    _, labels, probabilities = predictions.of_view(table, "tta")
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    n_bins = scores.ECE_BINS
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    images = pd.DataFrame({"low": bins / n_bins, "confidence": confidence, "accuracy": right.astype(float)})
    grouped = images.groupby("low")
    found = grouped.mean().assign(images=grouped.size()).reset_index()
    return found.assign(high=found["low"] + 1 / n_bins)


def _library() -> str:
    """Read the charting library's scripts out of the page that `dvc plots` fills with the same."""
    text = packaged("d4lens.results.page").joinpath("vega.html").read_text(encoding="utf-8")
    return text[text.index("<script>") : text.index("</script>")].removeprefix("<script>")


def _name(arm: tuple[str, int]) -> str:
    return f"{arm[0]}-{arm[1]}"


def _forest(results: pd.DataFrame, colours: Mapping[str, str], profile: str) -> Plot:
    """Macro AUC of every arm with its interval; a point a seed and view."""
    averaged = results[results["tta"]].groupby("arm")[["auc_macro", "auc_macro_low", "auc_macro_high"]].mean()
    label = {arm: f"{arm}|{value:.4f} [{low:.4f}, {high:.4f}]" for arm, value, low, high in averaged.itertuples()}
    results = results.sort_values("tta", ascending=False, kind="stable")
    table = pd.DataFrame(
        {
            "arm": results["arm"],
            "label": results["arm"].map(label),
            "view": results["tta"].map({tta: _VIEWS[VIEWS[tta]] for tta in (False, True)}),
            "training": results["seed"].astype(str) + results["tta"].map({True: "a", False: "b"}),
            "value": results["auc_macro"],
            "low": results["auc_macro_low"],
            "high": results["auc_macro_high"],
        }
    )
    axis = {"labelExpr": "split(datum.label, '|')", "grid": True, "labelFontSize": 12}
    place = {
        "y": charts.nominal("label", axis=axis),
        "yOffset": charts.nominal("training", sort=sorted(table["training"].unique(), key=lambda name: name[-1])),
        "color": charts.nominal("arm", legend=None),
    }
    x = charts.number("value", "macro AUC on the test split")
    bar = {"x": charts.number("low", x["title"]), "x2": {"field": "high"}}
    shape = charts.nominal("view", scale={"domain": list(_VIEWS.values())[::-1], "range": ["circle", "diamond"]})
    spec = {
        "width": "container",
        "height": {"step": 44},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": place | bar},
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1, "tooltip": {"content": "data"}},
                "encoding": place | {"x": x, "shape": shape},
            },
        ],
    }
    text = (
        "Bars are 95 % bootstrap intervals over test images. The number is that of the mean of eight views. "
        "0.5 is chance; the interval of a difference between two arms stands under the table."
    )
    command = f"python stages/table.py --profile {profile}"
    return Plot("All arms", [charts.with_data(spec, table, colours)], text, command)


def _history(runs: Path, arms: Sequence[tuple[str, int]], colours: Mapping[str, str], profile: str) -> Plot:
    titles = {"loss": "training loss, with its penalties", "select_auc_macro": "macro AUC, selection split"}
    parts = []
    for arm in arms:
        try:
            table = pd.read_csv(runs / _name(arm) / "history.csv")
        except (OSError, ValueError):
            raise D4LensError(f"{runs / _name(arm) / 'history.csv'} is missing or damaged; train it again") from None
        parts += [
            table[["epoch", column]]
            .dropna()
            .set_axis(["epoch", "value"], axis=1)
            .assign(arm=arm[0], seed=arm[1], of=title)
            for column, title in titles.items()
        ]
    epoch = charts.number("epoch", "epoch", nice=False)
    epoch["axis"] = {"tickMinStep": 1, "format": "d"}
    spec = charts.panels("of", [_line(epoch, charts.number("value"), points=True)], (), shared=False, width=320)
    text = "One line a training. The epoch kept is the best on the selection split; the test split has no part in it."
    command = f"python stages/train.py --profile {profile} --arm {arms[0][0]} --seed {arms[0][1]}"
    return Plot("Training history", [charts.with_data(spec, pd.concat(parts), colours)], text, command)


def _growth(root: Path, colours: Mapping[str, str]) -> list[Plot]:
    """Macro AUC against training images, where that profile has results."""
    if not (root / "metrics" / _GROWING / tables.RESULTS).is_file():
        return []
    results = tables.read_results(root / "metrics" / _GROWING / tables.RESULTS)
    results = results[results["tta"]].assign(arm=results["arm"].str.replace(r"_\d+$", "", regex=True))
    table = results.groupby(["arm", "n_train"], sort=False)["auc_macro"].mean().clip(upper=0.9999).reset_index()
    table = table.sort_values("n_train", kind="stable").assign(seed=0)
    table["odds"] = np.log(table["auc_macro"] / (1 - table["auc_macro"]))
    named = np.array([0.5, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999])
    y = charts.number("odds", "macro AUC, test split")
    y["axis"] = {
        "values": np.log(named / (1 - named)).tolist(),
        "labelExpr": "format(1 / (1 + exp(-datum.value)), '~g')",
    }
    x = charts.number("n_train", "training images", log=True, nice=False)
    x["axis"] = {"values": sorted(table["n_train"].unique().tolist()), "format": ",d"}
    spec = {"width": "container", "height": 300, **_line(x, y, points=True)}
    text = f"metrics/{_GROWING}, averaged over eight views; both scales are stretched. Its own table has the intervals."
    return [Plot("Learning curve", [charts.with_data(spec, table, colours)], text, "make reproduce PROFILE=full_75px")]


def _roc(tables: Mapping[tuple[str, int], pd.DataFrame], colours: Mapping[str, str], profile: str) -> Plot:
    table = plots.curves(tables)
    x, y = (charts.number(f"{kind[0]}pr", f"{kind} positive rate", domain=[0, 1]) for kind in ("false", "true"))
    spec = charts.panels("class", [_diagonal("fpr", "tpr", 0), _line(x, y)], ())
    text = "One class against the rest, test split, averaged over eight views. Dashed: chance."
    command = f"python stages/table.py --profile {profile}"
    return Plot("ROC", [charts.with_data(spec, table, colours)], text, command)


def _calibration(tables: Mapping[tuple[str, int], pd.DataFrame], colours: Mapping[str, str], profile: str) -> Plot:
    table = pd.concat([reliability(table).assign(arm=arm[0], seed=arm[1]) for arm, table in tables.items()])
    domain = [1 / len(CLASSES), 1]
    x = charts.number("confidence", None, domain=domain, nice=False)
    y = charts.number("accuracy", "share that is right", domain=[0, 1])
    bins = charts.number("low", "probability of the answer", domain=domain, nice=False)
    images, size = charts.number("images", "images", zero=True), {"width": charts.SIDE}
    bars: dict[str, Any] = {"x": bins, "y": images, "color": charts.nominal("arm", legend=None)}
    label = {"x": {**bins, "field": "middle"}, "y": images, "text": {"field": "images", "type": "quantitative"}}
    counts = {
        "transform": [
            {"aggregate": [{"op": "sum", "field": "images", "as": "images"}], "groupby": ["arm", "low", "high"]},
            {"calculate": "(datum.low + datum.high) / 2", "as": "middle"},
        ],
        "layer": [
            {
                "mark": {"type": "rect", "opacity": 0.7},
                "encoding": bars | {"x2": {"field": "high"}, "y2": {"datum": 0}},
            },
            {
                "mark": {"type": "text", "angle": -90, "align": "left", "baseline": "middle", "dx": 4, "fontSize": 10},
                "encoding": label,
            },
        ],
        "height": 110,
        **size,
    }
    specs = []
    for name, part in table.groupby("arm", sort=False):
        curve = {"layer": [_diagonal("confidence", "accuracy", domain[0]), _line(x, y, points=True, legend=None)]}
        spec = {"title": name, "vconcat": [{**curve, "height": 180, **size}, counts], "spacing": 8}
        specs.append(charts.with_data(spec, part, colours))
    text = (
        f"Reliability on the test split, averaged over eight views: images in {scores.ECE_BINS} bins of the probability of "
        "their answer, and below the number of images in each bin. The bins' mean gap from the dashed diagonal, weighted by "
        "images, is the ECE of the table. A point that stands for few images says little."
    )
    return Plot("Calibration", specs, text, f"python stages/page.py --profile {profile}")


def _line(x: charts.Field, y: charts.Field, *, points: bool = False, **colour: Any) -> dict[str, Any]:
    """One line a training, in its arm's colour."""
    encoding = {"x": x, "y": y, "color": charts.nominal("arm", **colour), "detail": {"field": "seed"}}
    mark = {"type": "line", "interpolate": "linear", "point": points, "tooltip": {"content": "data"}}
    return {"mark": mark, "encoding": encoding}


def _diagonal(x: str, y: str, start: float) -> dict[str, Any]:
    """Draw a dashed line from (start, start) to (1, 1)."""
    values = [{x: end, y: end} for end in (start, 1)]
    encoding = {name: {"field": field, "type": "quantitative"} for name, field in (("x", x), ("y", y))}
    mark = {"type": "line", "strokeDash": [4, 4], "strokeWidth": 1, "color": "var(--soft)"}
    return {"data": {"values": values}, "mark": mark, "encoding": encoding}


def _confusions(tables: Mapping[tuple[str, int], pd.DataFrame]) -> dict[str, list[list[tuple[int, float]]]]:
    """For each arm, rows of the true class: (images, share of the row) by the predicted class; seeds together."""
    table = plots.confusions(tables)
    found = {}
    for arm, part in table.groupby("arm", sort=False):
        images = part.pivot_table("images", "actual", "predicted", "sum").loc[list(CLASSES), list(CLASSES)].to_numpy()
        found[str(arm)] = [[(int(count), count / row.sum()) for count in row] for row in images]
    return found


def _galleries(
    root: Path, profile: str, tables: Mapping[tuple[str, int], pd.DataFrame], n: int
) -> dict[str, Any] | None:
    """Images that the first seed of the arm that draws a convergence got wrong, and that it got right; None without it."""
    arm = next((arm for arm in tables if arm[0] == _EXPLAINED), None)
    if arm is None:
        return None
    right, wrong = gallery.choose_examples(tables[arm], n)
    weights = root / "runs" / profile / _name(arm) / "model.safetensors"
    shown = gallery.examples(root / "data" / profile, weights, tables[arm], [*wrong, *right])
    _, labels, probabilities = predictions.of_view(tables[arm], "tta")
    return {
        "training": _name(arm),
        "wrong": shown[: len(wrong)],
        "right": shown[len(wrong) :],
        "n_wrong": int((probabilities.argmax(axis=1) != labels).sum()),
        "n": len(labels),
    }


def _section(root: Path, profile: str, name: str, colours: Mapping[str, str]) -> dict[str, Any]:
    """One study for the template, its records as a table and its figures with their charts."""
    found = outcome.read_outcome(root / "metrics" / profile / "studies" / f"{name}.json")
    labels = dict.fromkeys(label for row in found.records for label in row if label not in outcome.MEASURED)
    head = [*labels, *outcome.MEASURED]
    cells = [[row.get(label) for label in head] for row in found.records]
    return {
        "id": name,
        "short": name.replace("_", " ").capitalize(),
        "title": found.title,
        "study": found,
        "figures": [
            Plot(figure.title, _drawn(root / figure.file, colours), figure.caption, figure.command)
            for figure in found.figures
        ],
        "head": head,
        "rows": cells,
    }


def _drawn(table: Path, colours: Mapping[str, str]) -> list[charts.Spec]:
    """Read a study's chart, none where its table is empty. Raises D4LensError where its table or its template is missing or damaged."""
    try:
        text, values = table.with_suffix(".json").read_text(encoding="utf-8"), pd.read_csv(table)
        return [charts.filled(text, values, colours)] if len(values) else []
    except (OSError, ValueError, KeyError):
        raise D4LensError(
            f"a study names the figure {table}, which is missing or damaged, or its .json is; run its stage again"
        ) from None


def _lists(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Group lines of Markdown by the sentences that their items stand below."""
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("- "):
            found[-1][1].append(line.removeprefix("- "))
        elif line:
            found.append((line, []))
    return found


def _prose(text: str) -> Markup:
    """Set the `code` of a sentence as such."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
