import errno
import io
import json
import multiprocessing
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from referees import read_truth

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError, PhysicsError
from d4lens.simulator import DataSet, dataset, draw, join_shards, preset, render, write_archive

SIZE = (40, 23)  # neither divides by three


@pytest.fixture(scope="module")
def archive(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "lenses.zip"
    write_archive(path, DataSet(tiny, 5, *SIZE))
    return path


def image(file: zipfile.ZipFile, path: str) -> np.ndarray:
    return np.load(io.BytesIO(file.read(f"dataset/{path}")), allow_pickle=False)


def test_the_tree_is_that_of_the_published_set(archive):
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        names = set(file.namelist())
        expected = set()
        for split, n in zip(("train", "val"), SIZE):
            for i, label in enumerate(CLASSES):
                expected |= {f"dataset/{split}/{label}/{k + 1}.npy" for k in range((n - i + 2) // 3)}
        assert names == expected | {f"dataset/{x}" for x in ("truth.csv", "subhalos.csv", "preset.json", "shard.json")}
        for path in ("train/no/1.npy", "val/vort/2.npy"):
            array = image(file, path)
            assert (array.shape, array.dtype, array.min(), array.max()) == ((1, 16, 16), np.float64, 0.0, 1.0)


def test_the_images_are_those_of_the_truth(archive, tiny):
    truth = read_truth(archive)
    assert len(truth) == sum(SIZE)
    counts = render(truth, tiny).numpy()
    with zipfile.ZipFile(archive) as file:
        for path, k in zip(truth.images["path"], counts):
            np.testing.assert_array_equal(image(file, path)[0], (k - k.min()) / (k.max() - k.min()))
    val = draw(tiny, 5, range(SIZE[1]), split="val")
    assert truth.images["path"].tolist()[SIZE[0] :] == val.images["path"].tolist()
    assert not np.isin(truth.images["theta_E"][: SIZE[0]], val.images["theta_E"]).any()


def test_published_counts_can_be_recovered(tmp_path):
    """Of full-size images, as the reader of the published set does it."""
    p = preset("deeplense")
    write_archive(tmp_path / "a.zip", DataSet(p, 1, 3, 0))
    counts = render(draw(p, 1, range(3)), p).numpy()
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        for path, k in zip(draw(p, 1, range(3)).images["path"], counts):
            x = image(file, path)[0]
            n = round(1 / np.diff(np.unique(x)).min())
            np.testing.assert_array_equal(np.rint(x * n), k - k.min())
            assert 600 < n < 1000


def test_worker_processes_change_no_byte(archive, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_WORTH_A_WORKER", 1)
    monkeypatch.setattr(dataset, "_CHUNK", 7)
    write_archive(tmp_path / "b.zip", DataSet(tiny, 5, *SIZE), workers=2)
    assert (tmp_path / "b.zip").read_bytes() == archive.read_bytes()
    write_archive(tmp_path / "c.zip", DataSet(tiny, 6, *SIZE))
    assert (tmp_path / "c.zip").read_bytes() != archive.read_bytes()


def test_shards_of_two_processes_join_to_the_file_of_one(archive, tiny, tmp_path):
    context = multiprocessing.get_context("spawn")
    paths = [tmp_path / f"{i}.zip" for i in range(2)]
    processes = [
        context.Process(target=write_archive, args=(path, DataSet(tiny, 5, *SIZE), i, 2))
        for i, path in enumerate(paths)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    join_shards(reversed(paths), tmp_path / "joined.zip")
    assert (tmp_path / "joined.zip").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("n_shards", [1, 3, 70])
def test_any_number_of_shards_joins(archive, tiny, tmp_path, n_shards):
    paths = [tmp_path / f"{i}.zip" for i in range(n_shards)]
    for i, path in enumerate(paths):
        write_archive(path, DataSet(tiny, 5, *SIZE), i, n_shards)  # of 70 some are empty
    join_shards(paths, tmp_path / "joined.zip")
    assert (tmp_path / "joined.zip").read_bytes() == archive.read_bytes()


def test_refuses_shards_that_do_not_belong_together(archive, tiny, tmp_path):
    def shard(name, p=tiny, seed=5, n=10, i=0, of=3):
        write_archive(tmp_path / name, DataSet(p, seed, n, 0), i, of)
        return tmp_path / name

    parts = [shard(f"{i}.zip", i=i) for i in range(3)]
    other_prior = preset("deeplense", {"n_pixels": 16, "pixel_scale": 0.4, "psf_sigma": 0.4, "gamma": 0.1})
    out = tmp_path / "out.zip"
    for paths, words in (
        ([parts[0], parts[2]], "begins at image 6, but the shards before it end at 3"),
        (parts[:2], "end at image 6 of 10"),
        ([*parts, parts[1]], "begins at image 3"),
        ([*parts[:2], shard("seed.zip", seed=6, i=2)], "seed 6"),
        ([*parts[:2], shard("n.zip", n=11, i=2)], "n_train 11"),
        ([*parts[:2], shard("prior.zip", p=other_prior, i=2)], "other priors"),
        ([], "no shards"),
        ([*parts[:2], tmp_path / "none.zip"], "none.zip is no shard"),
    ):
        with pytest.raises(D4LensError, match=words):
            join_shards(paths, out)
        assert not out.exists()
    (tmp_path / "bad.zip").write_bytes(parts[2].read_bytes()[:-40])
    with pytest.raises(D4LensError, match=r"bad.zip is no shard"):
        join_shards([*parts[:2], tmp_path / "bad.zip"], out)


def test_a_full_disk_leaves_no_file(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(D4LensError, match=r"cannot write .*a.zip: No space left"):
        write_archive(tmp_path / "a.zip", DataSet(tiny, 1, 3, 0))
    assert list(tmp_path.iterdir()) == []


def test_a_fault_in_the_middle_keeps_the_old_file(tiny, tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(b"old")
    monkeypatch.setattr(dataset, "_CHUNK", 2)
    made = dataset._make

    def fails(task):
        if task[3].start >= 4:
            raise KeyboardInterrupt
        return made(task)

    monkeypatch.setattr(dataset, "_make", fails)
    with pytest.raises(KeyboardInterrupt):
        write_archive(path, DataSet(tiny, 1, 9, 0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_memory_is_flat_in_the_number_of_images(tiny, tmp_path):
    peaks = []
    write_archive(tmp_path / "warm.zip", DataSet(tiny, 1, 40, 0))
    for n in (100, 700):
        tracemalloc.start()
        write_archive(tmp_path / "a.zip", DataSet(tiny, 1, n, 0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # What grows is the zip's directory, under a KiB an image; an image's truth alone takes two.
    assert peaks[1] - peaks[0] < 600 * 1024


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (dataset.SHARD, b"{}", "has no "),
        (dataset.SHARD, b"[1]", "is no shard"),
        (dataset.SHARD, b'{"seed": null}', "is no shard"),
        (dataset.SHARD, b"[" * 10_000, "is no shard"),
        ("../out.npy", b"x", "leads outside the archive"),
        (dataset.TRUTH, None, "is damaged"),
    ],
)
def test_a_shard_that_is_wrong_inside_is_one_sentence(archive, tmp_path, name, content, words):
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(path, "w") as odd:
        for info in whole.infolist():
            if info.filename != name:
                odd.writestr(info, whole.read(info))
        if content is not None:
            odd.writestr(name, content)
    with pytest.raises(D4LensError, match=words):
        join_shards([path], tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seed": -1}, "seed.*-1"),
        ({"n_train": -1}, "n_train.*-1"),
        ({"n_val": 1.5}, "n_val.*1.5"),
        ({"n_train": 0, "n_val": 0}, r"n_train \+ n_val.*0"),
        ({"shard": 2}, "shard.*2"),
        ({"shard": -1}, "shard.*-1"),
        ({"n_shards": 0}, "n_shards.*0"),
        ({"workers": 0}, "workers.*0"),
    ],
)
def test_refuses_numbers_that_make_no_sense(tiny, tmp_path, arguments, words):
    values = {"seed": 0, "n_train": 3, "n_val": 3, "shard": 0, "n_shards": 2, **arguments}
    data = DataSet(tiny, *(values.pop(name) for name in ("seed", "n_train", "n_val")))
    with pytest.raises(PhysicsError, match=words):
        write_archive(tmp_path / "a.zip", data, **values)
    assert list(tmp_path.iterdir()) == []


def test_the_train_part_may_take_presets_in_turn(tiny, archive, tmp_path):
    """Every third of train at every angle; all else is the archive's without, bit for bit; shards join to the same."""
    turned = preset("deeplense_turned", dict(n_pixels=16, pixel_scale=0.4, psf_sigma=0.4))
    path, data = tmp_path / "a.zip", DataSet(tiny, 5, *SIZE, (tiny, tiny, turned))
    write_archive(path, data)
    train, before = (read_truth(p).images.query("split == 'train'") for p in (path, archive))
    assert (before["gamma2"] <= 0).all()
    third = train["index"] // 3 % 3 == 2
    assert train[~third].equals(before[~third])
    assert (train["preset"] == np.where(third, "deeplense_turned", "deeplense")).all()
    assert (train[third]["gamma2"] > 0).sum() > third.sum() / 4
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(archive) as without:
        for name in file.namelist():
            if name.endswith(".npy") and name.removeprefix("dataset/") not in set(train["path"][third]):
                assert file.read(name) == without.read(name)
        mixed, plain = (json.loads(f.read("dataset/preset.json")) for f in (file, without))
    assert mixed.pop("train_presets") == ["deeplense", "deeplense", "deeplense_turned"]
    others = mixed.pop("train_priors")
    assert others["deeplense"] == {}
    assert list(others["deeplense_turned"]) == ["gamma_phi", "source_phi"]
    assert mixed == plain
    parts = [tmp_path / f"{i}.zip" for i in range(2)]
    for i, part in enumerate(parts):
        write_archive(part, data, i, 2)
    join_shards(parts, tmp_path / "joined.zip")
    assert (tmp_path / "joined.zip").read_bytes() == path.read_bytes()
    with pytest.raises(D4LensError, match="no other telescope or noise"):
        write_archive(tmp_path / "b.zip", DataSet(tiny, 5, *SIZE, (preset("deeplense"),)))
    assert not (tmp_path / "b.zip").exists()
