"""Line charts as inline SVG that take the page's colours: readable on light and dark ground, small, without ids."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 360, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 28, 42
_LOG_TICKS = [digit * 10.0**power for power in range(6) for digit in (1, 3)]
_LOGIT_TICKS = [0.5, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999]
N_COLOURS = 10
"""How many colours the page's style sheet names: classes c0 to c9."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes
    ----------
    name : str
        Shown where the pointer rests.
    x, y : Sequence of float
        Finite points, of equal length.
    colour : int
        Index of the style sheet's colours.
    mark : bool
        Draw the points, too.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    mark: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes
    ----------
    label : str
        What it shows.
    range : tuple of float, optional
        Ends shown; None takes those of the points.
    whole : bool
        Name whole numbers only.
    scale : {"linear", "log", "logit"}
        "log" is for positive values, "logit" for those between 0 and 1.
    """

    label: str
    range: tuple[float, float] | None = None
    whole: bool = False
    scale: Literal["linear", "log", "logit"] = "linear"

    def place(self, value: float) -> float:
        """Return the value on the axis's scale."""
        if self.scale == "linear":
            return value
        return math.log10(value if self.scale == "log" else value / (1 - value))


def line_chart(title: str, lines: Sequence[Line], x: Axis, y: Axis, diagonal: bool = False) -> str:
    """Draw curves as an SVG element.

    Parameters
    ----------
    title : str
        Heading.
    lines : Sequence of Line
        The curves.
    x, y : Axis
        The axes.
    diagonal : bool
        Add the line from corner to corner, for chance or perfection.

    Returns
    -------
    str
        The element.
    """
    (x_low, x_high), (y_low, y_high) = (
        [axis.place(end) for end in axis.range]
        if axis.range
        else _range([axis.place(value) for line in lines for value in getattr(line, name)])
        for name, axis in (("x", x), ("y", y))
    )

    def place_x(value: float) -> float:
        return _LEFT + (x.place(value) - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def place_y(value: float) -> float:
        return HEIGHT - _BOTTOM - (y.place(value) - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>',
    ]
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value in _ticks(x_low, x_high, x):
        at = place_x(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>')
    for value in _ticks(y_low, y_high, y):
        at = place_y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    if diagonal:
        parts.append(f'<path class="chance" d="M{_LEFT} {bottom}L{right} {_TOP}"/>')
    for line in lines:
        points = [(place_x(a), place_y(b)) for a, b in zip(line.x, line.y, strict=True)]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        kind = f"c{line.colour % N_COLOURS}"
        if points:
            parts.append(f'<path class="curve {kind}" d="M{path}"><title>{escape(line.name)}</title></path>')
        if line.mark:
            parts += [f'<circle class="dot {kind}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts.append(f'<text x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    parts.append(
        f'<text transform="translate(12 {middle_y}) rotate(-90)" text-anchor="middle">{escape(y.label)}</text></svg>'
    )
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float, axis: Axis) -> list[float]:
    """Values to name between two places of an axis."""
    if axis.scale != "linear":
        known = _LOG_TICKS if axis.scale == "log" else _LOGIT_TICKS
        return [value for value in known if low <= axis.place(value) <= high]
    values = MaxNLocator(5, integer=axis.whole).tick_values(low, high)
    shown = [float(value) for value in np.round(values, 10) if low <= value <= high]
    return [value for value in shown if value.is_integer()] if axis.whole else shown
