import random
import zlib
from pathlib import Path

import pytest

from d4lens.data.images import formats

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz(load_tool):
    return load_tool(SCRIPT)


def test_a_thousand_damaged_files_are_read_or_refused(fuzz, tmp_path):
    """`tools/fuzz.py` in small; 100,000 and more by hand (docs/reliability.md)."""
    tally, faults = fuzz.run(1000, 5, tmp_path, tmp_path / "keep")
    assert faults == []
    for suffix in (".npy", ".npz", ".fits", ".png", ".tif", ".zip"):
        assert tally[f"{suffix} refused"] > 10
        assert tally[f"{suffix} read"] > 0


def test_a_reader_that_crashes_is_found_and_its_input_kept(fuzz, tmp_path, monkeypatch):
    read = formats.READERS[".npz"]

    def careless(data, where, band=None):
        if zlib.crc32(data) % 3 == 0:
            raise IndexError("out of range")
        return read(data, where, band)

    monkeypatch.setitem(formats.READERS, ".npz", careless)
    _, faults = fuzz.run(400, 5, tmp_path, tmp_path / "keep")
    assert faults
    assert all(".npz: IndexError: out of range" in fault for fault in faults)
    assert len(list((tmp_path / "keep").iterdir())) == len(faults)


def test_equal_seeds_make_equal_inputs(fuzz, tmp_path):
    files = fuzz.corpus(tmp_path, None)
    one, two = (
        [fuzz.mutate(data, files[".npy"], draw) for kind in files.values() for data in kind]
        for draw in (random.Random(3), random.Random(3))
    )
    assert one == two
    assert list(fuzz.headers(20, 4)) == list(fuzz.headers(20, 4))
