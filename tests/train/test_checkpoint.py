import errno
import multiprocessing
import os
import shutil
import time

import pytest
import torch

from d4lens.errors import D4LensError
from d4lens.files import sole_writer
from d4lens.train import checkpoint
from d4lens.train.checkpoint import Progress

PRINTS = {"parameters": "a", "processes, device and precision": "p", "data": "b", "code": "c"}


def progress(epoch):
    tensors = {"model.w": torch.full((3,), float(epoch)), "optimizer.0.step": torch.tensor(float(epoch))}
    return Progress(
        epoch, [{"epoch": e + 1, "loss": 0.1 / (e + 1)} for e in range(epoch)], 1, 0.9, 1.5, 1.0, tensors=tensors
    )


@pytest.fixture
def folder(tmp_path):
    """Three epochs saved."""
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path, progress(epoch), PRINTS)
    return tmp_path


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_comes_back_to_the_bit_and_two_are_kept(folder):
    assert files(folder) == ["epoch-00002.safetensors", "epoch-00003.safetensors"]
    found = checkpoint.latest(folder, PRINTS)
    assert {k: v for k, v in vars(found).items() if k != "tensors"} == {
        k: v for k, v in vars(progress(3)).items() if k != "tensors"
    }
    assert found.tensors.keys() == progress(3).tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in progress(3).tensors.items())
    assert torch.equal(found.part("model")["w"], torch.full((3,), 3.0))


def test_nothing_saved_is_a_fresh_start(tmp_path):
    assert checkpoint.latest(tmp_path, PRINTS) == Progress()


@pytest.mark.parametrize("kept", [0, 5, 200])
def test_a_truncated_one_gives_way_to_the_one_before(folder, kept, caplog):
    last = folder / "epoch-00003.safetensors"
    last.write_bytes(last.read_bytes()[:kept])
    assert checkpoint.latest(folder, PRINTS).epoch == 2
    assert "passing over checkpoint" in caplog.text
    assert "truncated" in caplog.text


def test_with_all_truncated_it_starts_afresh(folder):
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert checkpoint.latest(folder, PRINTS) == Progress()


def test_a_pickle_in_its_place_is_not_read(folder):
    class Bomb:
        def __reduce__(self):
            return (open, (str(folder / "exploded"), "w"))

    torch.save(Bomb(), folder / "epoch-00003.safetensors")
    assert checkpoint.latest(folder, PRINTS).epoch == 2
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("changed", [("parameters",), ("processes, device and precision",), ("data", "code")])
def test_a_stale_one_is_refused_saying_why(folder, changed, caplog):
    digests = {name: "x" if name in changed else value for name, value in PRINTS.items()}
    assert checkpoint.latest(folder, digests) == Progress()
    assert f"starting afresh: the {' and '.join(changed)} changed" in caplog.text
    assert files(folder) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_save_cut_off_leaves_the_earlier_ones(folder, error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        checkpoint.save(folder, progress(4), PRINTS)
    monkeypatch.undo()
    assert files(folder) == ["epoch-00002.safetensors", "epoch-00003.safetensors"]
    assert checkpoint.latest(folder, PRINTS).epoch == 3


def test_what_a_killed_writer_left_is_swept_away(folder):
    (folder / ".epoch-00004.abc.safetensors").touch()
    checkpoint.clear(folder)
    assert files(folder) == []


def hold(folder, ready, done):
    with sole_writer(folder):
        ready.set()
        done.wait(60)


def test_one_writer_at_a_time_and_a_killed_one_frees_the_place(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(D4LensError, match="another process is writing"), sole_writer(tmp_path):
        pass
    other.kill()
    other.join()
    with sole_writer(tmp_path):
        pass


def start_holder(folder, ready, done):
    """As dvc starts a trainer."""
    child = multiprocessing.get_context("fork").Process(target=hold, args=(folder, ready, done))
    child.start()
    child.join()


def test_the_writer_keeps_its_place_when_what_started_it_is_killed(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    starter = context.Process(target=start_holder, args=(tmp_path, ready, done))
    starter.start()
    assert ready.wait(60)
    starter.kill()
    starter.join()
    with pytest.raises(D4LensError, match="another process is writing"), sole_writer(tmp_path):
        pass
    done.set()
    until = time.monotonic() + 60
    while True:  # the orphan is nobody's child to wait for
        try:
            with sole_writer(tmp_path):
                return
        except D4LensError:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_the_fingerprint_tells_parameters_data_and_code_apart(tmp_path, monkeypatch):
    (tmp_path / "train.npy").write_bytes(b"1")
    setting = {"processes": 1, "precision": "32-true"}
    before = checkpoint.digests({"seed": 1}, setting, tmp_path)
    assert checkpoint.digests({"seed": 1}, setting, tmp_path) == before

    def changed(seed=1, **other):
        now = checkpoint.digests({"seed": seed}, setting | other, tmp_path)
        return {name for name in now if now[name] != before[name]}

    assert changed(seed=2) == {"parameters"}
    assert changed(processes=2) == changed(precision="bf16-mixed") == {"processes, device and precision"}
    (tmp_path / "train.npy").write_bytes(b"2")
    assert changed() == {"data"}
    (tmp_path / "train.npy").write_bytes(b"1")
    monkeypatch.setattr(checkpoint, "version", lambda name: "0")
    assert changed() == {"code"}
    assert len({checkpoint.combined(before), checkpoint.combined({**before, "code": "x"})}) == 2


@pytest.mark.parametrize(
    ("part", "seen"),
    [
        ("models/batch.py", True),
        ("models/scores.py", True),
        ("models/pinn.py", True),  # imported by its name
        ("simulator/substructure.py", True),
        ("models/unet.py", True),
        ("models/equivariant.py", True),  # imported within a function
        ("results/page/__init__.py", False),
        ("inference/pipeline.py", False),
        ("macrofit/fitting.py", False),  # what it made is among the data
    ],
)
def test_an_edit_of_the_code_that_trains_is_seen_and_of_other_code_not(part, seen, tmp_path, monkeypatch):
    package = checkpoint.imports.SOURCE / "d4lens"
    shutil.copytree(package, tmp_path / "d4lens", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    monkeypatch.setattr(checkpoint.imports, "SOURCE", tmp_path)
    before = checkpoint.code()
    with (tmp_path / "d4lens" / part).open("a") as file:
        file.write("# edited\n")
    assert (checkpoint.code() != before) == seen


def test_a_finished_one_keeps_its_result_alone(folder):
    whole = checkpoint.latest(folder, PRINTS)
    whole.tensors["best.w"] = torch.ones(2)
    checkpoint.finish(folder, whole, PRINTS)
    assert files(folder) == ["epoch-00003.safetensors"]
    kept = checkpoint.latest(folder, PRINTS)
    assert (kept.epoch, kept.history, list(kept.tensors)) == (3, whole.history, ["best.w"])
    checkpoint.forget(folder)
    assert checkpoint.latest(folder, PRINTS) == Progress()


def test_one_finished_without_room_to_keep_it_is_none(folder, monkeypatch, caplog):
    whole = checkpoint.latest(folder, PRINTS)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    checkpoint.finish(folder, whole, PRINTS)
    assert "published but not kept" in caplog.text
    assert files(folder) == []


def test_an_unfinished_one_is_not_forgotten(folder):
    before = files(folder)
    checkpoint.forget(folder)
    assert files(folder) == before


def test_nothing_is_forgotten_under_a_living_trainer(folder):
    with sole_writer(folder), pytest.raises(D4LensError, match="another process is writing"):
        checkpoint.forget(folder)


def test_a_checkpoint_of_an_older_version_is_stale_and_says_so(folder, caplog):
    for path in folder.iterdir():
        tensors, description = checkpoint.weights.read(path)
        for new in ("threads", "n_images"):
            del description[new]
        theirs = {**description.pop("fingerprint")}
        del theirs["processes, device and precision"]
        checkpoint.weights.write(path, tensors, {**description, "fingerprint": theirs})
    assert checkpoint.latest(folder, PRINTS) == Progress()
    assert "starting afresh: the processes, device and precision changed" in caplog.text
