"""Numbers in documents: each comes from a file of metrics/ by a marker, so that no page can say another than was measured.

A block stands between `<!-- KIND:NAME:begin -->` and `<!-- KIND:NAME:end -->`: `results:PROFILE` is the profile's whole
table, `headline:PROFILE` the three rows that a first page has room for.

A number in a sentence stands in `<!--n FILE KEY=VALUE ... FIELD FORMAT-->0.99<!--/n-->`. FILE is a profile, whose
results.csv is read with test-time augmentation and averaged over seeds, or a file of records below metrics/ without its
.json; the rest picks the record and says how its field is written, as Python's format does.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from d4lens.errors import D4LensError
from d4lens.files import read_json, write_text
from d4lens.results.tables import (
    ARCHIVE,
    REPORT,
    RESULTS,
    read_baselines,
    read_families,
    read_profile,
    read_results,
    results_markdown,
)

HEADLINE = {
    "d4lenspinn_published": "the image alone (the published pipeline)",
    "d4cnn_residual": "the residual of a smooth-lens fit",
    "d4lenspinn": "this residual, and the significance of one more mass at each place",
}
"""Arms of the first page's table, and what each reads."""
_BLOCK = re.compile(r"<!-- (\w+):([\w-]+):(begin|end) -->")
_NUMBER = re.compile(r"<!--n ([^>]+?)-->([^<]*)<!--/n-->")


def find_documents(root: str | Path) -> list[Path]:
    """List the documents of a project.

    Parameters
    ----------
    root : str or Path
        The project.

    Returns
    -------
    list of Path
        README.md and the others beside it, and those of docs/.
    """
    root = Path(root)
    return sorted([*root.glob("*.md"), *root.glob("docs/*.md")])


def stale(root: str | Path) -> list[Path]:
    """List the documents that say another than the metrics.

    Parameters
    ----------
    root : str or Path
        The project.

    Returns
    -------
    list of Path
        The documents.

    Raises
    ------
    D4LensError
        For a marker that leads nowhere.
    """
    metrics = Path(root) / "metrics"
    return [
        path for path in find_documents(root) if (text := path.read_text(encoding="utf-8")) != refreshed(text, metrics)
    ]


def update(root: str | Path) -> list[Path]:
    """Bring all documents to what the metrics say.

    Parameters
    ----------
    root : str or Path
        The project.

    Returns
    -------
    list of Path
        The documents that changed.

    Raises
    ------
    D4LensError
        For a marker that leads nowhere.
    """
    metrics = Path(root) / "metrics"
    changed = stale(root)
    texts = [refreshed(path.read_text(encoding="utf-8"), metrics) for path in changed]
    for path, text in zip(changed, texts, strict=True):
        write_text(path, text)
    return changed


def refreshed(text: str, metrics: str | Path) -> str:
    """Bring a document to what the metrics say.

    Parameters
    ----------
    text : str
        The document.
    metrics : str or Path
        The folder metrics/.

    Returns
    -------
    str
        The document, changed between its markers alone. A block of a profile without results stays as it is.

    Raises
    ------
    D4LensError
        For a block marker without its partner or of an unknown kind, and for a number that no record, or several, have.
    """
    metrics = Path(metrics)
    marks = _BLOCK.findall(text)
    for kind, name in {mark[:2] for mark in marks}:
        if [mark[2] for mark in marks if mark[:2] == (kind, name)] != ["begin", "end"] or kind not in _BLOCKS:
            raise D4LensError(f"a document needs one begin and one end marker {kind}:{name}, of {', '.join(_BLOCKS)}")
        folder = _folder(metrics, name)
        if folder is not None:
            begin, end = (f"<!-- {kind}:{name}:{side} -->" for side in ("begin", "end"))
            before, rest = text.split(begin, 1)
            text = f"{before}{begin}\n{_BLOCKS[kind](folder)}\n{end}{rest.split(end, 1)[1]}"
    return _NUMBER.sub(lambda found: f"<!--n {found[1]}-->{_number(found[1], metrics)}<!--/n-->", text)


def _folder(metrics: Path, profile: str) -> Path | None:
    """Find a profile's results: its own, else those of an earlier version that wait for their rerun."""
    found = [folder for folder in (metrics / profile, metrics / ARCHIVE / profile) if (folder / RESULTS).is_file()]
    return found[0] if found else None


def _results(folder: Path) -> str:
    table = results_markdown(*read_profile(folder), read_families(folder), read_baselines(folder))
    version = read_json(folder / REPORT).get("version")
    note = f"\n\n*Measured with version {version} of the code; its rerun is pending.*"
    return table + (note if version else "")


def _headline(folder: Path) -> str:
    results = read_results(folder / RESULTS)
    lines = ["| network | reads | macro AUC [95 %] |", "|---|---|---:|"]
    for arm, reads in HEADLINE.items():
        rows = results[(results["arm"] == arm) & results["tta"]]
        value, low, high = rows["auc_macro"].mean(), rows["auc_macro_low"].min(), rows["auc_macro_high"].max()
        lines.append(f"| `{arm}` | {reads} | {value:.4f} [{low:.4f}, {high:.4f}] |")
    return "\n".join(lines)


_BLOCKS: dict[str, Callable[[Path], str]] = {"results": _results, "headline": _headline}


def _number(expression: str, metrics: Path) -> str:
    name, *picks, field, how = shlex.split(expression)
    folder = _folder(metrics, name)
    if folder is not None:
        table = read_results(folder / RESULTS)
        table = table[table["tta"]]
    else:
        path = metrics / f"{name}.json"
        if not path.is_file():
            raise D4LensError(f"the marker {expression!r} names no results: there is no {path}")
        table = pd.DataFrame(read_json(path)["records"])
    for pick in picks:
        key, _, value = pick.partition("=")
        if key not in table:
            raise D4LensError(f"the marker {expression!r} picks by {key}, which {name} does not have")
        table = table[table[key].astype(str) == value]
    if field not in table or not len(table) or (folder is None and len(table) > 1):
        raise D4LensError(f"the marker {expression!r} finds {len(table)} records with {field}; it must find one")
    return format(float(table[field].mean()), how)
