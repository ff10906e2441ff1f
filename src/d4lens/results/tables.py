"""The results as tables: rows from evaluations, the CSV and JSON files, the documents' copy, the terminal's.

Everything is made from files of `metrics/` alone, so the documents can be held against them on a clone that never ran the
pipeline. Numbers that change from one run to the next of equal code and parameters (times) stand in timing.json; the one
exception, `train_minutes`, is rounded to whole minutes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from d4lens.classes import VIEWS
from d4lens.errors import D4LensError
from d4lens.files import atomic_path, read_json, write_json
from d4lens.models.scores import METRICS

# The metrics of an evaluation; each has a 95 % interval in the columns _low and _high. The second part stands further right.
_MORE = tuple(name for name in METRICS if name.startswith(("recall_", "ece", "brier", "nll")))
_VALUES = tuple(name for name in METRICS if name not in _MORE)
INTERVALS = tuple(f"{name}_{end}" for name in (*_VALUES, *_MORE) for end in ("low", "high"))
COUNT_COLUMNS = ("n_train", "n_test", "params")
RESULT_COLUMNS = (
    *("profile", "arm", "seed", "tta"),
    *_VALUES,
    *COUNT_COLUMNS,
    "train_minutes",
    *_MORE,
    *("n_pixels", "epochs"),
    *INTERVALS,
)
KEYS = ("profile", "arm", "seed", "tta")

# Files of metrics/<profile>/, and metrics/ with both forms of all profiles' results; in metrics/archive/<profile>/ those of profiles that wait for their rerun, with
# the version of the code that made them in report.json.
ARCHIVE = "archive"
RESULTS = "results.csv"
RESULTS_JSON = "results.json"
AUC_JSON = "test_auc_macro.json"
"""What `dvc metrics show` prints: by arm the macro AUC with TTA, over seeds; few enough numbers to fit a screen."""
REPORT = "report.json"

# The order of a table's rows; arms that are not named here follow by name.
ARM_ORDER = (
    "resnet18",
    "resnet18_residual",
    "d4cnn",
    "d4cnn_residual",
    "d4cnn_significance",
    "d4lenspinn_published",
    "d4lenspinn",
)
_ADDED = ("brier", "nll")


Baselines = Mapping[str, Mapping[str, Mapping[str, float]]]


class Family(NamedTuple):
    """Arms that are compared with each other.

    Attributes
    ----------
    arms : tuple of str
        Their names in the table.
    comparisons : Sequence of Mapping
        Their paired comparisons, as `predictions.compare` makes them.
    """

    arms: tuple[str, ...]
    comparisons: Sequence[Mapping[str, Any]]


def rows(evaluation: Mapping[str, Any], train_minutes: float) -> list[dict[str, Any]]:
    """Make the two rows (plain, with TTA) of one evaluation file.

    Parameters
    ----------
    evaluation : Mapping
        {"profile", "arm", "seed", "n_train", "n_test", "params", "n_pixels", "epochs", "plain": metrics, "tta": metrics},
        where metrics are {name: {"value", "low", "high"}}.
    train_minutes : float
        Minutes of training; rounded.

    Returns
    -------
    list of dict
        The rows, by COLUMNS.

    Raises
    ------
    D4LensError
        Naming what the evaluation lacks.
    """
    result = []
    for view in VIEWS:
        try:
            row: dict[str, Any] = {"tta": view == "tta", "train_minutes": round(train_minutes)}
            row |= {key: evaluation[key] for key in ("profile", "arm", "seed", *COUNT_COLUMNS, "n_pixels", "epochs")}
            for name in (*_VALUES, *_MORE):
                measured = evaluation[view][name]
                row |= {name: measured["value"], f"{name}_low": measured["low"], f"{name}_high": measured["high"]}
        except KeyError as error:
            raise D4LensError(f"an evaluation of {evaluation.get('arm')} has no {error}; run evaluate again") from None
        result.append({column: row[column] for column in RESULT_COLUMNS})
    return result


def table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Put rows in the fixed order of columns and arms, then seeds, plain before TTA.

    Parameters
    ----------
    records : iterable of Mapping
        Rows as `rows` makes them.

    Returns
    -------
    pandas.DataFrame
        The rows, by COLUMNS.

    Raises
    ------
    D4LensError
        For two rows of the same training and view.
    """
    ordered = sorted(
        records, key=lambda row: (row["profile"], _position(row["arm"]), row["arm"], row["seed"], row["tta"])
    )
    frame = pd.DataFrame(ordered, columns=list(RESULT_COLUMNS))
    twins = frame[frame.duplicated(list(KEYS))]
    if len(twins):
        raise D4LensError(f"two results for {', '.join(map(str, twins.iloc[0][list(KEYS)]))}; keep one")
    return frame


def write_profile(
    folder: str | Path,
    results: pd.DataFrame,
    caption: str,
    comparisons: Sequence[Mapping[str, Any]],
    families: Mapping[str, Family] | None = None,
    baselines: Baselines | None = None,
) -> None:
    """Write the results of one profile: results.csv, AUC_JSON (DVC's metrics), report.json (caption, comparisons).

    Parameters
    ----------
    folder : str or Path
        metrics/<profile>/.
    results : pandas.DataFrame
        As `table` makes it.
    caption : str
        Sentences that stand above the table.
    comparisons : Sequence of Mapping
        Paired comparisons of the profile's own arms.
    families : Mapping of str to Family, optional
        Further tables by their titles.
    baselines : Mapping, optional
        Metrics of baselines without a network by their names, as `shallow.measure` makes them.
    """
    folder = Path(folder)
    write_csv(folder / RESULTS, results)
    averaged = results[results["tta"]].groupby("arm", sort=False)["auc_macro"].mean()
    write_json(folder / AUC_JSON, {str(arm): float(value) for arm, value in averaged.items()})
    further: dict[str, Any] = (
        {"families": {title: family._asdict() for title, family in families.items()}} if families else {}
    )
    further |= {"baselines": baselines} if baselines else {}
    write_json(folder / REPORT, {"caption": caption, "comparisons": list(comparisons), **further})


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table atomically; equal tables give equal bytes.

    Parameters
    ----------
    path : str or Path
        The file.
    table : pandas.DataFrame
        The table; its index is left out.
    """
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def read_results(path: str | Path) -> pd.DataFrame:
    """Read a results.csv.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    pandas.DataFrame
        A row an arm, seed and view.

    Raises
    ------
    D4LensError
        If it is missing, or lacks a column.
    """
    path = Path(path)
    try:
        frame = pd.read_csv(path, float_precision="round_trip")
    except (OSError, ValueError):
        raise D4LensError(f"there are no results in {path}; run the pipeline (make reproduce)") from None
    missing = [column for column in RESULT_COLUMNS if column not in frame and not column.startswith(_ADDED)]
    if missing:
        raise D4LensError(f"{path} has no column {', '.join(missing)}; run the table stage again")
    return frame.reindex(columns=RESULT_COLUMNS)  # an older table has no Brier score and no likelihood


def join_profiles(metrics: str | Path) -> pd.DataFrame:
    """Join all metrics/<profile>/results.csv to metrics/results.csv and .json.

    Parameters
    ----------
    metrics : str or Path
        The folder `metrics`.

    Returns
    -------
    pandas.DataFrame
        The joined table.

    Raises
    ------
    D4LensError
        As `read_results` and `table`.
    """
    metrics = Path(metrics)
    parts = [read_results(metrics / profile / RESULTS) for profile in profiles(metrics)]
    joined = table(record for part in parts for record in _records(part))
    write_csv(metrics / RESULTS, joined)
    write_json(metrics / RESULTS_JSON, _records(joined))
    return joined


def profiles(metrics: str | Path) -> list[str]:
    """List the profiles that have results.

    Parameters
    ----------
    metrics : str or Path
        The folder of the metrics.

    Returns
    -------
    list of str
        Their names, sorted.
    """
    return sorted(path.parent.name for path in Path(metrics).glob(f"*/{RESULTS}"))


def results_markdown(
    results: pd.DataFrame,
    caption: str,
    comparisons: Sequence[Mapping[str, Any]],
    families: Mapping[str, Family] | None = None,
    baselines: Baselines | None = None,
) -> str:
    """Write one profile's tables for a document.

    Parameters
    ----------
    results : pandas.DataFrame
        As `read_results` reads them.
    caption : str
        Sentences that stand above the table.
    comparisons : Sequence of Mapping
        Paired comparisons of the profile's own arms.
    families : Mapping of str to Family, optional
        Further tables by their titles.
    baselines : Mapping, optional
        Metrics of baselines without a network by their names.

    Returns
    -------
    str
        Markdown: caption, rows averaged over seeds, and below the baselines without a network and the paired comparisons.
    """
    blocks = []
    for title, rows, pairs in _parts(results, comparisons, families or {}):
        head, body = cells(rows)
        first = headline(rows, title or caption)
        lines = [first, "", _line(head), _line(["---"] + ["---:"] * (len(head) - 1)), *map(_line, body)]
        below = without_network(baselines) if baselines and not title else []
        blocks.append("\n".join([*lines, *below, *(["", *compared(rows, pairs)] if pairs else [])]))
    return "\n\n".join(blocks)


def table_text(folder: str | Path) -> str:
    """Write a profile's results for the terminal.

    Parameters
    ----------
    folder : str or Path
        metrics/<profile>.

    Returns
    -------
    str
        The tables with their headlines.
    """
    results, caption, comparisons = read_profile(folder)
    blocks = []
    for title, rows, _ in _parts(results, comparisons, read_families(folder)):
        head, body = cells(rows)
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        rules = ["-" * width for width in widths]
        lines = [
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
            for line in (head, rules, *body)
        ]
        blocks.append("\n".join([headline(rows, title or caption).replace("**", ""), "", *lines]))
    return "\n\n".join(blocks)


def _parts(
    results: pd.DataFrame, comparisons: Sequence[Mapping[str, Any]], families: Mapping[str, Family]
) -> list[tuple[str, pd.DataFrame, Sequence[Mapping[str, Any]]]]:
    """(title, rows, comparisons) of the profile's own table, whose title is empty, and of each family."""
    own = results[~results["arm"].isin([arm for family in families.values() for arm in family.arms])]
    further = [(f"Grid {title}.", results[results["arm"].isin(family.arms)], family.comparisons)
               for title, family in families.items()]  # fmt: skip
    return [("", own, comparisons), *further]


def read_profile(folder: str | Path) -> tuple[pd.DataFrame, str, list[dict[str, Any]]]:
    """Read results, caption and comparisons of a folder metrics/<profile>/.

    Parameters
    ----------
    folder : str or Path
        The folder.

    Returns
    -------
    pandas.DataFrame
        As `read_results`.
    str
        The caption.
    list of dict
        The comparisons.

    Raises
    ------
    D4LensError
        As `read_results` and `files.read_json`.
    """
    folder = Path(folder)
    results, report = read_results(folder / RESULTS), read_json(folder / REPORT)
    return results, report["caption"], report["comparisons"]


def read_families(folder: str | Path) -> dict[str, Family]:
    """Read the families of a folder metrics/<profile>/ by their titles.

    Parameters
    ----------
    folder : str or Path
        metrics/<profile>.

    Returns
    -------
    dict of str to Family
        Empty where there are none.
    """
    found = read_json(Path(folder) / REPORT).get("families", {})
    return {title: Family(tuple(family["arms"]), family["comparisons"]) for title, family in found.items()}


def read_baselines(folder: str | Path) -> Baselines:
    """Read a profile's baselines without a network.

    Parameters
    ----------
    folder : str or Path
        metrics/<profile>.

    Returns
    -------
    dict
        Metrics by the baseline's name; empty where they were not measured.
    """
    found: Baselines = read_json(Path(folder) / REPORT).get("baselines", {})
    return found


def without_network(baselines: Baselines) -> list[str]:
    """Write the baselines without a network as lines of Markdown.

    Parameters
    ----------
    baselines : dict
        As of `read_baselines`.

    Returns
    -------
    list of str
        An empty line, a sentence, another empty line, and an item each.
    """
    lines = ["", "Macro AUC of a random forest that sees only these numbers of the smooth fit:", ""]
    for name, measured in baselines.items():
        auc = measured["auc_macro"]
        lines.append(f"- {name}: {auc['value']:.4f} [{auc['low']:.4f}, {auc['high']:.4f}]")
    return lines


def _records(results: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): _plain(value) for key, value in row.items()} for row in results.to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value


def _position(arm: str) -> int:
    return ARM_ORDER.index(arm) if arm in ARM_ORDER else len(ARM_ORDER)


def cells(results: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Lay a table out as text.

    Parameters
    ----------
    results : pandas.DataFrame
        As `read_results` reads them.

    Returns
    -------
    tuple
        Heads, and one line of cells an arm and view, averaged over seeds.
    """
    several = results["seed"].nunique() > 1
    spread = "± spread" if several else "[95 %]"
    names = (*_VALUES[1:], *_MORE)
    heads = {"ece": "ECE", "brier": "Brier", "nll": "NLL"}
    head = ["arm", "TTA", f"AUC macro {spread}"]
    head += [heads.get(name, name.replace("_", " ").replace("auc", "AUC")) for name in names]
    head += ["errors in 10,000", "parameters", "train min"]
    body = []
    for (arm, tta), group in results.groupby(["arm", "tta"], sort=False):
        mean = group.mean(numeric_only=True)
        if several:
            macro = (
                f"{mean['auc_macro']:.4f} ± {group['auc_macro'].std():.4f}"
                if len(group) > 1
                else f"{mean['auc_macro']:.4f}"
            )
        else:
            macro = f"{mean['auc_macro']:.4f} [{mean['auc_macro_low']:.4f}, {mean['auc_macro_high']:.4f}]"
        cells = [str(arm), "D4" if tta else "–", macro]
        cells += ["–" if pd.isna(mean[name]) else f"{mean[name]:.3f}" for name in names]
        cells.append(f"{1e4 * (1 - mean['accuracy']):,.0f}")
        body.append([*cells, f"{mean['params']:,.0f}", f"{mean['train_minutes']:.0f}"])
    return head, body


def headline(results: pd.DataFrame, caption: str) -> str:
    """Say what the numbers were made with, from the rows themselves, then the caption.

    Parameters
    ----------
    results : pandas.DataFrame
        The rows of a table.
    caption : str
        What else is to be said.

    Returns
    -------
    str
        In Markdown.
    """

    def each(column: str) -> str:
        values = sorted(results[column].unique())
        return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"

    seeds = sorted(results["seed"].unique())
    size = each("n_pixels")
    epochs = each("epochs")
    facts = (
        f"**Profile {results['profile'].iloc[0]}**: {each('n_train')} training and {each('n_test')} test images of "
        f"{size} × {size} pixels, {epochs} epoch{'' if epochs == '1' else 's'}, "
        + (f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}")
        + ". "
    )
    brackets = (
        "± is the standard deviation over seeds (95 % intervals over test images: results.csv)."
        if len(seeds) > 1
        else "Brackets are 95 % intervals over the test images."
    )
    return facts + " ".join([caption.strip(), brackets]).strip()


def compared(results: pd.DataFrame, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Report the contrasts that were fixed beforehand, then the best arm against each of the others, on the same images.

    Parameters
    ----------
    results : pandas.DataFrame
        As `read_results` reads them; the arm of the highest macro AUC with TTA is the best.
    comparisons : Sequence of Mapping
        As `predictions.compare` makes them.

    Returns
    -------
    list of str
        Lines of Markdown: a sentence, an empty line, and an item for each other arm.
    """
    over = "seeds and images" if min((pair.get("seeds", 1) for pair in comparisons), default=1) > 1 else "images"
    fixed = [pair for pair in comparisons if "seeds" in pair and "p_holm" in pair]
    lines = []
    if fixed:
        lines += [
            f"Contrasts fixed before the first run, macro AUC with TTA (paired bootstrap over {over}, p corrected for these "
            f"{len(fixed)} after Holm):",
            "",
        ]
        for pair in fixed:
            interval = f"{pair['difference']:+.4f} [{pair['low']:+.4f}, {pair['high']:+.4f}]"
            lines.append(f"- {pair['a']} − {pair['b']}: {interval}, p = {pair['p_holm']:.2g}")
        lines.append("")
    averaged = results[results["tta"]].groupby("arm", sort=False)["auc_macro"].mean()
    best = averaged.idxmax()
    lines += [
        f"Macro AUC with TTA of {best} minus that of each other arm, on the same test images (paired bootstrap over {over}). The "
        "pairs were not fixed in advance, so no p-value is given:",
        "",
    ]
    for pair in comparisons:
        if best not in (pair["a"], pair["b"]):
            continue
        sign, other = (1, pair["b"]) if pair["a"] == best else (-1, pair["a"])
        low, high = sorted((sign * pair["low"], sign * pair["high"]))
        lines.append(f"- {other}: {sign * pair['difference']:+.4f} [{low:+.4f}, {high:+.4f}]")
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
