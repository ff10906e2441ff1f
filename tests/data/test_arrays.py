import numpy as np
import pandas as pd
import pytest

from d4lens.data import arrays
from d4lens.errors import D4LensError


@pytest.fixture
def folder(tmp_path):
    with arrays.RowWriter(tmp_path / "train.npy", 3, 8, np.uint16) as writer:
        for value in range(3):
            writer.add(np.full((8, 8), value, np.uint16))
    rows = [("train", row, f"train/no/{row}.npy", 0, "no", 1, 0, "") for row in range(3)]
    pd.DataFrame(rows, columns=arrays.MANIFEST_COLUMNS).to_csv(tmp_path / "manifest.csv", index=False)
    (tmp_path / "observation.json").write_text('{"n_pixels": 8, "pixel_scale": 0.1, "psf_sigma": 0.1, "sky": 1.0}')
    return tmp_path


def test_a_split_is_a_read_only_map(folder):
    split = arrays.load_split(folder, "train")
    assert split.counts[:, 0, 0].tolist() == [0, 1, 2]
    assert split.labels.dtype == np.int64
    assert split.paths == ["train/no/0.npy", "train/no/1.npy", "train/no/2.npy"]
    with pytest.raises(ValueError, match="read-only"):
        split.counts[0] = 1


def test_a_damaged_folder_is_named(folder, tmp_path):
    with pytest.raises(D4LensError, match="no split 'val'; the splits are train, select, test"):
        arrays.load_split(folder, "val")
    whole = (folder / "train.npy").read_bytes()
    for data in (b"", whole[:-1], whole[:20], b"PK\x03\x04"):
        (folder / "train.npy").write_bytes(data)
        with pytest.raises(D4LensError, match=r"train\.npy is missing or damaged"):
            arrays.load_split(folder, "train")
    np.save(folder / "train.npy", np.zeros((2, 8, 8), np.uint16))
    with pytest.raises(D4LensError, match=r"has shape \(2, 8, 8\) where manifest\.csv lists 3"):
        arrays.load_split(folder, "train")
    (folder / "manifest.csv").write_text("split,row\ntrain,1\n")
    with pytest.raises(D4LensError, match=r"manifest\.csv is missing or damaged"):
        arrays.load_split(folder, "train")
    (folder / "observation.json").write_text("{}")
    with pytest.raises(D4LensError, match="has no 'n_pixels'"):
        arrays.load_observation(folder)
    for text in ("{", "[1]"):
        (folder / "observation.json").write_text(text)
        with pytest.raises(D4LensError, match=r"observation\.json is missing or damaged"):
            arrays.load_observation(folder)
    with pytest.raises(D4LensError, match="is missing or damaged; run the preprocess stage"):
        arrays.load_split(tmp_path / "absent", "train")


def test_row_writer_refuses_what_does_not_fit(tmp_path):
    short = arrays.RowWriter(tmp_path / "a.npy", 2, 8, np.uint16).__enter__()
    short.add(np.zeros((8, 8), np.uint16))
    for wrong in (np.zeros((8, 9), np.uint16), np.zeros((8, 8), np.int64)):
        with pytest.raises(ValueError, match="in an array of 8 pixels of uint16"):
            short.add(wrong)
    with pytest.raises(RuntimeError, match="given 1 of its 2 images"):
        short.__exit__(None)


def test_atomic_folder_keeps_the_old_one_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    old = tmp_path / "arrays"
    old.mkdir()
    (old / "a").write_text("old")
    replace, calls = arrays.os.replace, []

    def fail_second(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(arrays.os, "replace", fail_second)
    with pytest.raises(OSError, match="No space"), arrays.atomic_folder(old) as temporary:
        (temporary / "a").write_text("new")
    assert (old / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["arrays"]
