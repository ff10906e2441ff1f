"""Values with their intervals as a drawing of a study: points with error bars, a panel an arm."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from d4lens.results import charts
from d4lens.results.outcome import MEASURED
from d4lens.studies.study import Drawing


def interval_drawing(
    name: str,
    title: str,
    caption: str,
    records: Sequence[Mapping[str, Any]],
    by: tuple[str, str, str],
    xlabel: str,
    *,
    log: bool = False,
    marks: Sequence[float] = (),
    domain: Sequence[float] | None = None,
) -> Drawing:
    """Draw points with error bars.

    Parameters
    ----------
    name, title, caption : str
        As of `Drawing`.
    records : sequence of mapping
        What is drawn; records without a value are left out.
    by : tuple of str
        Labels of the records that choose the panel, the line within it and the colour. Lines stand in the order in which they
        first appear.
    xlabel : str
        Of the values' axis.
    log : bool
        Whether that axis is logarithmic.
    marks : sequence of float
        Thin lines at these values.
    domain : sequence of float, optional
        Ends of the values' axis, beyond which nothing is drawn.

    Returns
    -------
    Drawing
        A panel for each of the first label's values.
    """
    drawn = [r for r in records if r["value"] is not None]
    table = pd.DataFrame(drawn, columns=None if drawn else [*dict.fromkeys(by), *MEASURED])
    return Drawing(name, title, caption, table, charts.intervals(*by, xlabel, log=log, marks=marks, domain=domain))
