"""Drawings of the studies: values with their intervals, one panel a model, and the same numbers as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from d4lens.files import atomic_path

# Fixed ids and no date: equal values give equal bytes.
_SVG: Any = {"svg.hashsalt": "d4lens", "svg.fonttype": "none", "font.size": 8}


def intervals(
    path: str | Path,
    records: Sequence[Mapping[str, Any]],
    panel: str,
    row: str,
    colour: str,
    xlabel: str,
    *,
    log: bool = False,
    marks: Sequence[float] = (),
) -> None:
    """Points with error bars into `path` (svg), and the records drawn into the csv beside it; both atomically.

    panel, row, colour: labels of the records that choose the panel, the line within it and the colour. Rows stand in the
    order in which they first appear. marks: thin lines at these values. Records without a value are left out.
    """
    drawn = [r for r in records if r["value"] is not None]
    table = pd.DataFrame(drawn, columns=None if drawn else ["value", "ci_low", "ci_high", "n"])
    with atomic_path(Path(path).with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False)
    panels = list(dict.fromkeys(r[panel] for r in drawn)) or [""]
    colours = list(dict.fromkeys(r[colour] for r in drawn))
    rows = {name: list(dict.fromkeys(r[row] for r in drawn if r[panel] == name)) for name in panels}
    height = 0.8 + 0.17 * max(len(names) for names in rows.values())
    with mpl.rc_context(_SVG):
        figure = Figure(figsize=(1.2 + 3.6 * len(panels), max(2.4, height)), layout="constrained")
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
        with atomic_path(path) as temporary:
            figure.savefig(temporary, metadata={"Date": None})
