"""Charts as Vega-Lite: one specification draws a table on the page and, as DVC's template, in `dvc plots`.

A specification here has no data and no title. `template` adds the marks where DVC puts both; `filled` fills them in. Panels
stand in one facet, so that the page wraps them to its width and `dvc plots` sets revisions below each other.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

Spec = Mapping[str, Any]
Field = dict[str, Any]

_DATA, _TITLE = "<DVC_METRIC_DATA>", "<DVC_METRIC_TITLE>"
_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
SIDE = 240
"""Width of a panel in pixels."""


def nominal(name: str, title: str | None = None, **more: Any) -> Field:
    """Encode a column of names, in the order of its rows.

    Parameters
    ----------
    name : str
        The column.
    title : str, optional
        Of the axis or legend.
    **more
        Further options of the encoding.

    Returns
    -------
    dict
        The encoding.
    """
    return {"field": name, "type": "nominal", "sort": None, "title": title, **more}


def number(name: str, title: str | None = None, *, log: bool = False, **scale: Any) -> Field:
    """Encode a column of numbers.

    Parameters
    ----------
    name : str
        The column.
    title : str, optional
        Of the axis.
    log : bool
        Whether the axis is logarithmic.
    **scale
        Options of the scale.

    Returns
    -------
    dict
        The encoding.
    """
    scale = {"nice": True} | ({"type": "log"} if log else {"zero": False}) | scale
    axis = {"labelOverlap": True} | ({"format": "~e"} if log else {})
    return {"field": name, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def lines(at: Sequence[float], **mark: Any) -> dict[str, Any]:
    """Draw vertical lines.

    Parameters
    ----------
    at : sequence of float
        Values of the x axis.
    **mark
        Options of the mark.

    Returns
    -------
    dict
        A layer.
    """
    values = [{"at": value} for value in at]
    encoding = {"x": {"field": "at", "type": "quantitative"}}
    return {"data": {"values": values}, "mark": {"type": "rule", **mark}, "encoding": encoding}


def panels(panel: str, layers: Sequence[Spec], numbers: Sequence[str], *, shared: bool = True, **size: Any) -> Spec:
    """Draw layers once for each value of a column.

    Parameters
    ----------
    panel : str
        The column.
    layers : Sequence of Mapping
        Marks with their encodings.
    numbers : Sequence of str
        Columns that hold numbers: DVC hands a CSV file's cells over as text.
    shared : bool
        One y axis for all panels, where it does not name each panel's own rows.
    **size
        Width and height of a panel other than SIDE.

    Returns
    -------
    Mapping
        The specification.
    """
    return {
        "data": {"format": {"parse": dict.fromkeys(numbers, "number")}},
        "facet": nominal(panel, header={"labelFontWeight": "bold"}),
        "spec": {"width": SIDE, "height": SIDE, **size, "layer": list(layers)},
        "resolve": {"scale": {} if shared else {"y": "independent"}},
    }


def intervals(
    panel: str,
    row: str,
    colour: str,
    label: str,
    *,
    log: bool = False,
    marks: Sequence[float] = (),
    domain: Sequence[float] | None = None,
    ends: Sequence[str] = ("ci_low", "ci_high"),
) -> Spec:
    """Values with their intervals as points with error bars.

    Parameters
    ----------
    panel, row, colour : str
        Columns that choose the panel, the line within it and the colour.
    label : str
        Of the values' axis.
    log : bool
        Whether that axis is logarithmic.
    marks : Sequence of float
        Thin lines at these values.
    domain : Sequence of float, optional
        Ends of the values' axis, beyond which nothing is drawn; None shows all.
    ends : Sequence of str
        Columns of the interval's ends; the value's is "value".

    Returns
    -------
    Mapping
        The specification.
    """
    low, high = ends
    scale = {} if domain is None else {"domain": list(domain), "nice": False}
    title = colour.replace("_", " ")
    encoding = {
        "x": number("value", label, log=log, **scale),
        "y": nominal(row, axis={"grid": True}),
        "yOffset": nominal(colour),
        "color": nominal(colour, title),
        "shape": nominal(colour, legend=None),
    }
    bar = {key: value for key, value in encoding.items() if key != "shape"}
    bar |= {"x": number("from", label, log=log, **scale), "x2": {"field": "to"}}
    point = {"type": "point", "filled": True, "size": 24, "invalid": None, "clip": True, "tooltip": {"content": "data"}}
    layers = [
        {"mark": {"type": "rule", "invalid": None, "clip": True}, "encoding": bar},
        {"mark": point, "encoding": encoding},
    ]
    if marks:
        layers.insert(0, lines(marks, strokeDash=[2, 2], opacity=0.5))
    spec = panels(panel, layers, ("value", low, high), shared=False, height={"step": 9})
    whole = [
        {"calculate": f"isValid(datum.{end}) ? datum.{end} : datum.value", "as": name}
        for end, name in ((low, "from"), (high, "to"))
    ]
    return {**spec, "transform": whole}


def template(spec: Spec) -> dict[str, Any]:
    """Turn a specification into a template of DVC's, revisions below each other.

    Parameters
    ----------
    spec : dict
        A chart in facets.

    Returns
    -------
    dict
        What DVC reads.
    """
    return {
        "$schema": _SCHEMA,
        **spec,
        "data": {"values": _DATA, **spec["data"]},
        "title": _TITLE,
        "facet": {"column": spec["facet"], "row": nominal("rev")},
    }


def filled(text: str, table: pd.DataFrame, colours: Mapping[str, str]) -> dict[str, Any]:
    """Fill a table into a template for the page.

    Parameters
    ----------
    text : str
        JSON of a `template`.
    table : pandas.DataFrame
        What is drawn.
    colours : Mapping of str to str
        Colour by arm: wherever a chart's colour tells the arm, it is this one.

    Returns
    -------
    dict
        The specification; its panels wrap.
    """
    spec: dict[str, Any] = json.loads(text)
    del spec["title"]
    spec["facet"] = spec["facet"]["column"]
    return with_data(spec, table, colours)


def with_data(spec: Spec, table: pd.DataFrame, colours: Mapping[str, str]) -> dict[str, Any]:
    """Put a table into a specification, as `filled` does.

    Parameters
    ----------
    spec : dict
        A chart.
    table : pandas.DataFrame
        Its data.
    colours : mapping of str to str
        Colour by name.

    Returns
    -------
    dict
        The chart with the data, of six digits.
    """
    values = json.loads(
        table.to_json(orient="records", double_precision=15), parse_float=lambda text: float(f"{float(text):.6g}")
    )
    spec = {"$schema": _SCHEMA, **spec, "data": {**spec.get("data", {}), "values": values}}
    if "facet" in spec:
        spec["facet"] = {**spec["facet"], "sort": table[spec["facet"]["field"]].dropna().unique().tolist()}
    return {key: _coloured(value, table, colours) if key != "data" else value for key, value in spec.items()}


def _coloured(part: Any, table: pd.DataFrame, colours: Mapping[str, str]) -> Any:
    """Give each encoding of an arm's colour the page's colours; what is no arm gets the colour of text."""
    if isinstance(part, list):
        return [_coloured(one, table, colours) for one in part]
    if not isinstance(part, Mapping):
        return part
    changed = {key: _coloured(value, table, colours) for key, value in part.items()}
    colour = changed.get("color")
    if isinstance(colour, dict) and colour.get("field") == "arm":
        names = list(table[colour["field"]].dropna().unique())
        scale = {"domain": names, "range": [colours.get(name, "var(--soft)") for name in names]}
        changed["color"] = colour | {"scale": scale}
    return changed
