"""A study's outcome as one JSON file: its question, its answer in words, what it cannot tell, records with intervals.

Every study writes this form, so that the page, the README and a reader's script need to know one only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from d4lens.errors import D4LensError
from d4lens.files import read_json, write_json

MEASURED = ("value", "ci_low", "ci_high", "n")
"""What every record holds beside its labels: the value, its 95 % interval and the number of units behind it."""


@dataclass(frozen=True)
class DrawingRecord:
    """A drawing as it is recorded: its table, `file` from the project's root, its caption, and the command that makes it."""

    file: str
    title: str
    caption: str
    command: str


@dataclass(frozen=True)
class Outcome:
    """What a study found. The file's name is the study's.

    Attributes
    ----------
    question : what the study asks.
    answers : sentences with the figures in them.
    cannot_tell : sentences on the limits.
    records : flat rows of labels (text, whole numbers, booleans) and MEASURED; None where a value is undefined.
    figures, title : its drawings and its heading on the page; the stage that writes them adds them here.
    controls : names of the records' quantities that are controls, with what each should be.
    """

    question: str
    answers: Sequence[str]
    cannot_tell: Sequence[str]
    records: Sequence[Mapping[str, Any]]
    figures: Sequence[DrawingRecord] = ()
    controls: Mapping[str, str] = field(default_factory=dict)
    title: str = ""


def record(value: float, low: float, high: float, n: int, **labels: Any) -> dict[str, Any]:
    """Make one row of a study.

    Parameters
    ----------
    value, low, high : float
        What was measured, and the ends of its interval; what is not finite becomes None.
    n : int
        Of how many images, or other things counted.
    **labels
        What was measured.

    Returns
    -------
    dict
        The labels, then MEASURED.
    """
    measured = (None if not math.isfinite(x) else round(float(x), 6) for x in (value, low, high))
    return labels | dict(zip(MEASURED, (*measured, int(n)), strict=True))


def write_outcome(path: str | Path, outcome: Outcome) -> None:
    """Write it atomically, with the file's name as the study's.

    Parameters
    ----------
    path : str or Path
        The JSON file.
    outcome : Outcome
        What the study found.

    Raises
    ------
    ValueError
        For a record that lacks one of MEASURED.
    """
    name = Path(path).stem
    for row in outcome.records:
        if missing := set(MEASURED) - set(row):
            raise ValueError(f"a record of {name} has no {', '.join(sorted(missing))}: {dict(row)}")
    write_json(path, {"name": name, **asdict(outcome)})


def read_outcome(path: str | Path) -> Outcome:
    """Read an outcome from its file.

    Parameters
    ----------
    path : str or Path
        The JSON file.

    Returns
    -------
    Outcome

    Raises
    ------
    D4LensError
        For a file that is missing, damaged or of another form.
    """
    values = read_json(path)
    values.pop("name", None)
    try:
        return Outcome(**values | {"figures": [DrawingRecord(**figure) for figure in values.get("figures", [])]})
    except TypeError:
        raise D4LensError(f"{path} is no study of d4lens; run the stage that writes it again") from None
