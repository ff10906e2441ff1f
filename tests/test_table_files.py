import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from d4lens.errors import D4LensError
from d4lens.table_files import TABLE_SUFFIXES, write_table

TABLE = pd.DataFrame({"path": ["a", "b"], "chi2": [1.0000004, np.nan], "flag": ["", "failed: x"]})


def test_each_format_reads_back(tmp_path):
    for suffix, read in ((".csv", lambda path: pd.read_csv(path, keep_default_na=True)), (".parquet", pd.read_parquet)):
        write_table(TABLE, tmp_path / f"t{suffix}")
        back = read(tmp_path / f"t{suffix}")
        assert list(back.columns) == list(TABLE.columns)
        assert np.allclose(back["chi2"], TABLE["chi2"], rtol=1e-5, equal_nan=True)
    write_table(TABLE, tmp_path / "t.JSON")
    rows = json.loads((tmp_path / "t.JSON").read_text())
    assert rows[1] == {"path": "b", "chi2": None, "flag": "failed: x"}


def test_another_format_is_refused_and_nothing_left(tmp_path):
    for name in ("t.xlsx", "t", "t.csv.gz"):
        with pytest.raises(D4LensError, match=f"{name} names no table format"):
            write_table(TABLE, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_a_name_that_is_not_utf_8_is_written_too(tmp_path, suffix):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff" + suffix.encode()))
    write_table(TABLE, path)
    assert path.stat().st_size > 0
