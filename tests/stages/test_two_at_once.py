"""DVC itself, over one stage that guards its output as the real ones do: killed while the stage runs, and started twice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STAGE = """
import os, time
from pathlib import Path
from common import one_sentence
from d4lens.files import sole_writer, write_text

@one_sentence
def main():
    with sole_writer("out.txt"):
        with open("started", "a") as file:
            file.write(f"{os.getpid()}\\n")
        while not Path("go").exists():
            time.sleep(0.05)
        write_text("out.txt", "whole")

main()
"""
PIPELINE = "stages:\n  work:\n    cmd: python stage.py\n    deps: [stage.py]\n    outs: [out.txt]\n"
PATIENCE = 240.0


@pytest.fixture
def project(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "common.py").write_text((Path(__file__).resolve().parents[2] / "stages" / "common.py").read_text())
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    yield tmp_path
    (tmp_path / "go").touch()  # whatever failed, no stage waits on


def repro(folder: Path) -> subprocess.Popen:
    environment = os.environ | {
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_second_run_is_turned_away_and_dvc_terminated_leaves_nothing_that_the_next_run_does_not_mend(
    project, wait_for
):
    first = repro(project)
    wait_for((project / "started").exists)

    second = repro(project)
    said, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode != 0
    assert "busy" in said or "lock" in said
    assert len((project / "started").read_text().split()) == 1

    first.send_signal(signal.SIGTERM)
    first.wait(PATIENCE)  # and not for the end of its output, which its child holds open
    (stage,) = map(int, (project / "started").read_text().split())
    assert not (project / "out.txt").exists()
    if alive(stage):  # DVC does not take its child along: the stage's own lock keeps a twin away until it ends
        third = repro(project)
        said, _ = third.communicate(timeout=PATIENCE)
        assert third.returncode != 0
        assert "another process is writing out.txt; wait for it or end it" in said
        assert len((project / "started").read_text().split()) == 1
        assert not (project / "out.txt").exists()

    (project / "go").touch()
    wait_for(lambda: not alive(stage))
    last = repro(project)
    said, _ = last.communicate(timeout=PATIENCE)
    assert last.returncode == 0, said
    assert (project / "out.txt").read_text() == "whole"
