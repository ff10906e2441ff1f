"""`tools/reproduce.py` over DVC itself, with stages that note when they begin and end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from dvc.lock import make_lock

from d4lens.files import sole_writer
from d4lens.train import checkpoint

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "reproduce.py"
STAGE = """
import os, signal, sys, time
from pathlib import Path
name, *needs = sys.argv[1:]
log = Path("log")
def end(*_):  # as a trainer, which ends after its batch
    time.sleep(0.3)
    with log.open("a") as file:
        file.write(f"stopped {name}\\n")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    sys.exit(f"{name}: Ctrl-C does nothing")
with log.open("a") as file:
    file.write(f"begin {name} {os.environ.get('OMP_NUM_THREADS')}\\n")
if name.startswith("arm"):  # until another arm has begun, too: alone it would wait for ever
    deadline = time.monotonic() + 60
    while log.read_text().count("begin arm") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
while Path("hold").exists():
    time.sleep(0.05)
if Path(f"fail-{name}").exists():
    sys.exit(f"{name}: no luck")
Path(f"{name}.out").write_text("".join(Path(f"{need}.out").read_text() for need in needs) + name)
with log.open("a") as file:
    file.write(f"end {name}\\n")
"""
PIPELINE = """
stages:
  data: {cmd: python stage.py data, deps: [stage.py], outs: [data.out]}
  arm-a: {cmd: python stage.py arm-a data, deps: [data.out], outs: [arm-a.out]}
  arm-b: {cmd: python stage.py arm-b data, deps: [data.out], outs: [arm-b.out]}
  table: {cmd: python stage.py table arm-a arm-b, deps: [arm-a.out, arm-b.out], outs: [table.out]}
"""


@pytest.fixture(scope="module")
def reproduce(load_tool):
    return load_tool(SCRIPT)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh")
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(PIPELINE)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / "project")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = [sys.executable, str(SCRIPT), *words]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "PATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def test_stages_run_side_by_side_in_the_order_of_their_needs_and_only_when_changed(project, reproduce):
    done = run(project, "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split()[:2] for line in log(project)]
    place = {tuple(line): i for i, line in enumerate(lines)}
    assert place["end", "data"] < min(place["begin", "arm-a"], place["begin", "arm-b"])
    assert max(place["begin", "arm-a"], place["begin", "arm-b"]) < min(place["end", "arm-a"], place["end", "arm-b"])
    assert place["begin", "table"] > max(place["end", "arm-a"], place["end", "arm-b"])
    assert (project / "table.out").read_text() == "dataarm-adataarm-btable"
    assert "[arm-a] " in done.stdout
    # A stage alone has all cores, those side by side have their share.
    threads = {line.split()[1]: int(line.split()[2]) for line in log(project) if line.startswith("begin")}
    cores = reproduce.cores()
    assert threads == {"data": cores, "table": cores, "arm-a": max(1, cores // 2), "arm-b": max(1, cores // 2)}

    again = run(project, "--jobs", "2")
    assert again.returncode == 0
    assert "up to date" in again.stdout
    assert len(log(project)) == 8

    finished, cut_off = (project / "runs" / "quick" / ".work" / name for name in ("arm-a-0", "arm-b-0"))
    for folder, part in ((finished, "best"), (cut_off, "model")):
        checkpoint.save(folder, checkpoint.Progress(1, tensors={f"{part}.w": torch.ones(1)}), {})
    assert run(project, "--jobs", "2", "--force").returncode == 0
    assert not list(finished.glob("epoch-*")), "a finished training's result would spare the trainer"
    assert list(cut_off.glob("epoch-*")), "what was cut off is gone on with"
    with sole_writer(finished):
        busy = run(project, "--jobs", "2", "--force")
    assert (busy.returncode, busy.stderr.split(" runs")[0]) == (1, "reproduce: another process is writing")
    assert len(log(project)) == 16


def test_a_failed_stage_is_named_stops_what_needs_it_and_leaves_the_rest_done(project):
    (project / "fail-arm-a").touch()
    failed = run(project, "--jobs", "2")
    assert failed.returncode == 1
    assert failed.stderr.strip() == (
        "reproduce: arm-a failed, see above; what is done stays done, run the same command again"
    )
    assert "[arm-a] arm-a: no luck" in failed.stdout
    assert not any(line.startswith("begin table") for line in log(project))
    assert (project / "arm-b.out").exists()
    (project / "fail-arm-a").unlink()
    mended = run(project, "--jobs", "2")
    assert mended.returncode == 0
    assert sum(line.startswith("begin arm-b") for line in log(project)) == 1
    assert (project / "table.out").exists()


def test_a_second_one_at_once_is_turned_away_and_the_first_ends_right(project):
    (project / "hold").touch()
    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(run, project, "--jobs", "2")
            deadline = time.monotonic() + 120
            while not (project / "log").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            second = run(project, "--jobs", "2")
        finally:
            (project / "hold").unlink()
    assert second.returncode == 1
    assert "[data] ERROR" in second.stdout
    assert "is busy" in second.stdout
    assert first.result().returncode == 0
    assert (project / "table.out").read_text() == "dataarm-adataarm-btable"
    assert len(log(project)) == 8


def test_a_damaged_list_of_readers_and_writers_does_not_block_it(project, reproduce, tmp_path):
    damaged = tmp_path / "rwlock"
    for left in (b"", b"\xff\xfe"):
        damaged.write_bytes(left)
        reproduce.mend_locks(tmp_path)
        assert not damaged.exists()
    damaged = project / ".dvc" / "tmp" / "rwlock"
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_bytes(b'{"write": {"')
    done = run(project, "--jobs", "2")  # one alone would wait for the other arm
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rwlock was damaged and is removed" in done.stderr
    assert (project / "table.out").exists()


def test_a_list_that_dvc_is_writing_is_left_to_it(reproduce, tmp_path):
    """DVC empties the file, then fills it, under its lock."""
    path = tmp_path / "rwlock"
    path.touch()
    held = make_lock(str(tmp_path / "rwlock.lock"), tmp_dir=str(tmp_path))
    with ThreadPoolExecutor(1) as pool:
        with held:
            mending = pool.submit(reproduce.mend_locks, tmp_path)
            time.sleep(0.3)
            assert path.exists()
            path.write_text("{}")
        mending.result(30)
    assert path.read_text() == "{}"


def in_the_background() -> None:
    """As `nohup` under a shell without job control starts a process."""
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_leaves_no_stage_running(project, jobs, sent):
    (project / "hold").touch()
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, str(SCRIPT), "--jobs", jobs]
    tool = subprocess.Popen(command, cwd=project, env=environment, preexec_fn=in_the_background)
    try:
        deadline = time.monotonic() + 120
        while not (project / "log").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        tool.send_signal(sent)
        assert tool.wait(60) == {signal.SIGTERM: 143, signal.SIGINT: 130}[sent]
    finally:
        tool.kill()
        (project / "hold").unlink()
    assert [line.split()[0] for line in log(project)] == ["begin", "stopped"]
    if jobs == "2":  # what is left of either is the same
        assert run(project, "--jobs", "2").returncode == 0
        assert (project / "table.out").read_text() == "dataarm-adataarm-btable"


SLOW_TO_GO = """
import signal, sys, time
from pathlib import Path
def end(*_):
    time.sleep(0.3)
    Path("gone").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
Path("ready").touch()
time.sleep(60)
"""


def test_on_ctrl_c_it_stays_until_a_dvc_slow_to_go_is_gone(reproduce, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "DVC", (sys.executable, "-c", SLOW_TO_GO))

    def interrupt():
        deadline = time.monotonic() + 60
        while not Path("ready").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            reproduce.one_by_one("dvc.yaml", [])
    assert Path("gone").exists()


def test_tests_started_in_the_background_can_be_interrupted_too():
    """Of those that send Ctrl-C the quickest, in a pytest of its own."""
    name = test_on_ctrl_c_it_stays_until_a_dvc_slow_to_go_is_gone.__name__
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{__file__}::{name}"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=in_the_background)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_was_shown_is_not_made_up_again_until_something_changed(reproduce, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("d4lens.results.tables.table_text", lambda folder: f"the table of {folder}")
    for folder in ("tools", "metrics/quick"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("dvc.lock", "metrics/quick/results.csv"):
        (tmp_path / file).write_text("one")
    (tmp_path / "tools" / "show.py").write_text("from pathlib import Path; Path('shown').open('a').write('.')")

    def made() -> int:
        reproduce.show("quick", "dvc.yaml")
        return len((tmp_path / "shown").read_text())

    assert [made(), made()] == [1, 1]
    assert capfd.readouterr().out == "the table of metrics/quick\n"
    for times, file in enumerate(("dvc.lock", "metrics/quick/results.csv", "mlflow.db"), 2):
        (tmp_path / file).write_text("two")
        assert [made(), made()] == [times, times]
    (tmp_path / "tools" / "show.py").write_text("raise SystemExit(3)")
    (tmp_path / "dvc.lock").write_text("three")
    with pytest.raises(SystemExit) as failed:
        made()
    assert failed.value.code == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "reproduce: no profile 'nowhere'; there are quick"),
        (("--jobs", "0"), "reproduce: --jobs must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, words, message):
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    done = run(tmp_path, *words)
    assert (done.returncode, done.stderr.strip()) == (1, message)


def test_the_stages_that_most_depend_on_go_first(reproduce):
    needs = {"data": set(), "arm": {"data"}, "study": {"arm"}, "page": {"study", "arm"}}
    assert {name: len(after) for name, after in reproduce.dependants(needs).items()} == {
        "data": 3,
        "arm": 2,
        "study": 1,
        "page": 0,
    }
