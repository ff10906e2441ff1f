import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest

from d4lens import files
from d4lens.data.arrays import atomic_folder
from d4lens.errors import D4LensError, WriteError
from d4lens.files import atomic_path, held, readable, require_space, sole_writer, sweep, write_json, write_text

# A process that dies in the middle of a write, or waits there for its parent to look.
WRITER = """
import os, signal, sys
from d4lens.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


@contextmanager
def no_file_beyond(n_bytes: int):
    """A quota on the size of a file, kept by the kernel: the write that goes beyond it fails halfway, with EFBIG."""
    limits, had = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python takes a half-written .pyc for a whole one
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sys.dont_write_bytecode = had


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_quota_in_mid_write_is_one_sentence_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"auc": 0.5})
    before = path.read_bytes()
    with no_file_beyond(1000), pytest.raises(WriteError) as error:
        write_json(path, {"auc": [0.75] * 1000})
    assert str(error.value) == f"{path} cannot be written: file too large; mend that and run the same command again"
    assert error.value.errno == errno.EFBIG
    assert isinstance(error.value, D4LensError)
    assert isinstance(error.value, OSError)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["results.json"]
    write_json(path, {"auc": [0.75] * 1000})
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_full_disk_at_any_step_is_one_sentence(tmp_path, monkeypatch, step):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.Path if step == "open" else files.os, {"open": "touch"}.get(step, step), full)
    with pytest.raises(D4LensError, match=r"a\.txt cannot be written: no space left on device"):
        write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == []


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(D4LensError, match=r"x\.txt cannot be written: (not a directory|file exists)"):
        write_text(tmp_path / "file" / "x.txt", "x")


def test_what_is_wrong_with_the_content_stays_what_it_is(tmp_path):
    for error in (FileNotFoundError(2, "absent"), ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, atomic_path(tmp_path / "a.csv"):
            raise error
        assert raised.value is error
    assert names(tmp_path) == []


def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_living_one_keeps_its_own(tmp_path):
    path = tmp_path / "model.safetensors"
    killed = subprocess.run([sys.executable, "-c", WRITER, path, "die"], capture_output=True, text=True)
    assert names(tmp_path) == [killed.stdout.strip()]
    living = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        own = living.stdout.readline().strip()
        assert names(tmp_path) == [own]  # the second swept what the first left
        write_text(path, "whole")
        assert names(tmp_path) == [own, path.name]
    finally:
        living.communicate("")
    assert names(tmp_path) == [path.name]
    assert path.read_text() == "half"


def test_only_temporary_files_of_the_same_target_are_swept(tmp_path):
    others = [".a.json", ".b.01234567.json", ".a.settings.json", ".a.0123456.json", "a.01234567.json"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".a.01234567.json").touch()
    write_text(tmp_path / "a.json", "{}")
    assert names(tmp_path) == sorted([*others, "a.json"])


def test_folders_of_killed_writers_are_swept_too(tmp_path):
    for name in (".arrays.01234567", ".arrays.01234567.old", ".arrays.fedcba98"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all.npy").touch()
    with held(tmp_path / ".arrays.fedcba98"):
        sweep(tmp_path / "arrays")
    assert names(tmp_path) == [".arrays.fedcba98"]
    with atomic_folder(tmp_path / "arrays") as temporary, held(temporary):
        sweep(tmp_path / "arrays")
        (temporary / "a").touch()
    assert names(tmp_path) == ["arrays"]


def test_one_process_writes_at_a_time(tmp_path):
    with sole_writer(tmp_path / "macrofit"):
        with (
            pytest.raises(D4LensError, match=r"another process is writing .*macrofit; wait"),
            sole_writer(tmp_path / "macrofit"),
        ):
            raise AssertionError
        with pytest.raises(BlockingIOError):
            raise BlockingIOError
    with sole_writer(tmp_path / "macrofit"):
        pass


def test_too_little_room_is_said_before_the_work(tmp_path):
    require_space(tmp_path, 1)
    with pytest.raises(D4LensError, match=r"MB free where 1000000000 MB are needed"):
        require_space(tmp_path, 10**15)


def test_any_name_is_made_text_that_can_be_written():
    latin = os.fsdecode(b"a\xe9")
    assert readable(latin) == "a\\xe9"
    assert readable("é".encode().decode("ascii", "surrogateescape")) == "é"
    assert readable("é 中.npy") == "é 中.npy"
    assert readable("\ud800") == "\\ud800"
