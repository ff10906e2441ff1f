"""Tables written as csv, parquet or json, whichever the file's name ends in."""

from pathlib import Path
from typing import TYPE_CHECKING

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

PROBABILITIES = [f"p_{name}" for name in CLASSES]
"""Columns of the classes' probabilities in every table that has them."""
TABLE_SUFFIXES = (".csv", ".parquet", ".json")


def check_suffix(path: str | Path) -> None:
    """Check that `write_table` has a format for this name.

    Parameters
    ----------
    path : str or Path
        The file.

    Raises
    ------
    D4LensError
        Where it has none.
    """
    if Path(path).suffix.lower() not in TABLE_SUFFIXES:
        raise D4LensError(
            f"{path} names no table format; end it in {', '.join(TABLE_SUFFIXES[:-1])} or {TABLE_SUFFIXES[-1]}"
        )


def write_table(table: "pd.DataFrame", path: str | Path) -> None:
    """Write a table atomically: csv with six digits, parquet with all, json as a list of records (no number is null).

    Parameters
    ----------
    table : pandas.DataFrame
        The rows; the index is left out.
    path : str or Path
        The file, whose suffix is the format.

    Raises
    ------
    D4LensError
        For a name of another format.
    """
    check_suffix(path)
    suffix = Path(path).suffix.lower()
    with atomic_path(path) as temporary:
        if suffix == ".csv":
            table.to_csv(temporary, index=False, float_format="%.6g")
        elif suffix == ".parquet":
            temporary.write_bytes(table.to_parquet(index=False))  # pyarrow opens no name that is not UTF-8
        else:
            table.to_json(temporary, orient="records", indent=1, double_precision=10)
