"""Values with their intervals as a drawing of a study: points with error bars, a panel a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from d4lens.results.plots import drawing
from d4lens.studies.outcome import MEASURED
from d4lens.studies.study import Drawing


def intervals(
    name: str,
    title: str,
    caption: str,
    records: Sequence[Mapping[str, Any]],
    by: tuple[str, str, str],
    xlabel: str,
    *,
    log: bool = False,
    marks: Sequence[float] = (),
) -> Drawing:
    """Points with error bars.

    Parameters
    ----------
    name, title, caption : as of `Drawing`.
    records : what is drawn; records without a value are left out.
    by : labels of the records that choose the panel, the line within it and the colour. Lines stand in the order in
        which they first appear.
    xlabel : of the values' axis, which is logarithmic if `log`.
    marks : thin lines at these values.
    """
    drawn = [r for r in records if r["value"] is not None]
    table = pd.DataFrame(drawn, columns=None if drawn else list(MEASURED))
    return Drawing(name, title, caption, table, lambda path: _draw(path, drawn, *by, xlabel, log, marks))


def _draw(
    path: Path,
    drawn: Sequence[Mapping[str, Any]],
    panel: str,
    row: str,
    colour: str,
    xlabel: str,
    log: bool,
    marks: Sequence[float],
) -> None:
    panels = list(dict.fromkeys(r[panel] for r in drawn)) or [""]
    colours = list(dict.fromkeys(r[colour] for r in drawn))
    rows = {name: list(dict.fromkeys(r[row] for r in drawn if r[panel] == name)) for name in panels}
    height = 0.8 + 0.17 * max(len(names) for names in rows.values())
    size = (1.2 + 3.6 * len(panels), max(2.4, height))
    with mpl.rc_context({"font.size": 8}), drawing(path, size) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, name in zip(axes, panels, strict=True):
            for mark in marks:
                axis.axvline(mark, color="0.8", linewidth=0.8)
            for i, what in enumerate(colours):
                chosen = [r for r in drawn if r[panel] == name and r[colour] == what]
                if not chosen:
                    continue
                shift = 0.5 * (i / max(len(colours) - 1, 1) - 0.5)
                y = [rows[name].index(r[row]) + shift for r in chosen]
                x = [r["value"] for r in chosen]
                low, high = (
                    [max(0.0, sign * (x - (r[end] if r[end] is not None else x))) for x, r in zip(x, chosen)]
                    for sign, end in ((1, "ci_low"), (-1, "ci_high"))
                )
                axis.errorbar(
                    x, y, xerr=[low, high], fmt="o", markersize=2.5, linewidth=0.9, color=f"C{i}", label=str(what)
                )
            axis.set_yticks(range(len(rows[name])), [str(r) for r in rows[name]])
            axis.invert_yaxis()
            axis.set(title=name, xlabel=xlabel, xscale="log" if log else "linear")
            axis.grid(axis="y", color="0.93")
            axis.set_axisbelow(True)
        if drawn:
            handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels())}
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles)))
