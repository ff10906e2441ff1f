"""The whole pipeline, a size below the smoke profile's, run once: without a network, and each stage first without room."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ARM = "d4lenspinn"
# Bytes that a file may have: an archive, an array, a map, a checkpoint and a table break off in their middle.
QUOTAS = {
    "download": 200_000,
    "preprocess": 20_000,
    "macrofit": 20_000,
    "train": 100_000,
    "evaluate": 2_000,
    "table": 100,
}

# One process that runs every stage's script in turn, and the command line after them. Python tells the hook of every
# connection, name looked up and datagram, whoever asks and whatever becomes of the error.
DRIVER = """
import json, resource, runpy, socket, sys
from pathlib import Path

stages, arm, quotas = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
asked, refused = [], {}

def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        if event in ("socket.connect", "socket.sendto") and arguments[0].family == socket.AF_UNIX:
            return
        asked.append(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}")
        raise OSError("no network in this test")

sys.addaudithook(refuse)
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError:
    pass
blocked = asked[:]
asked.clear()

def run(stage):
    sys.argv = [stage, "--profile", "smoke"] + (["--arm", arm, "--seed", "0"] if stage in ("train", "evaluate") else [])
    try:
        runpy.run_path(str(stages / f"{stage}.py"), run_name="__main__")
    except SystemExit as stop:
        return stop.code

def files():
    tops = ("data", "runs", "metrics", "plots")
    return {str(path) for top in tops for path in Path(top).rglob("*") if path.is_file() and path.suffix != ".lock"}

sys.path.insert(0, str(stages))
sys.dont_write_bytecode = True  # Python takes a half-written .pyc for a whole one, here and in every later process
for stage, quota in quotas.items():
    before, limits = files(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (quota, limits[1]))
    said = run(stage)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused[stage] = {"said": said, "left": sorted(files() - before)}
    assert run(stage) is None, stage

from d4lens.cli import main
codes = [main(["simulate", "--n", "3", "--seed", "5", "-o", "three.zip"]), main(["predict", "three.zip", "-o", "three.csv"])]
Path("report.json").write_text(json.dumps({"blocked": blocked, "asked": asked, "refused": refused, "codes": codes}))
"""


def project(folder: Path) -> None:
    """A project's parameters, smaller than the smoke profile: 24 and 9 images of 37 pixels."""
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copy(ROOT / "README.md", folder)
    path = folder / "profiles" / "smoke" / "params.yaml"
    path.parent.mkdir(parents=True)
    values = yaml.safe_load((ROOT / "profiles" / "smoke" / "params.yaml").read_text())
    values["profile"]["arms"] = [ARM]
    values["profile"] |= {"download": {"n_train": 24, "n_val": 9}, "preprocess": {"bin": 4}, "train": {"epochs": 1}}
    path.write_text(yaml.safe_dump(values))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder it ran in, and what the driver reports."""
    folder = tmp_path_factory.mktemp("project")
    project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
        command = [sys.executable, "-c", DRIVER, str(ROOT / "stages"), ARM, json.dumps(QUOTAS)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return folder, json.loads((folder / "report.json").read_text())


def test_no_stage_and_no_command_asks_for_a_network(whole):
    """With the simulated data set, the default; only `download.source: gdrive` may ask."""
    folder, report = whole
    assert len(report["blocked"]) == 1  # the block itself blocks: a connection to loopback was refused
    assert report["asked"] == []
    assert report["codes"] == [0, 0]
    assert len((folder / "three.csv").read_text().splitlines()) == 4
    assert (folder / "mlflow.db").is_file()


@pytest.mark.parametrize("stage", QUOTAS)
def test_a_stage_without_room_ends_in_one_sentence_and_works_once_there_is_some(whole, stage):
    folder, report = whole
    said, left = report["refused"][stage]["said"], report["refused"][stage]["left"]
    assert said.startswith(f"{stage}: ")
    assert "cannot be written" in said or "cannot write" in said
    assert "file too large" in said.lower()
    assert "\n" not in said
    # What an interrupted fit and an interrupted training go on from is no output.
    assert [name for name in left if "macrofit.partial" not in name and "/.work/" not in name] == []
    assert (folder / "metrics" / "smoke" / "results.csv").is_file()
