"""Kill each long stage at random moments, run it again, and hold what it leaves against an undisturbed run, byte for byte.

    python tools/kill_campaign.py --kills 50 --seed 0

Stages run in a throw-away project of the smoke profile's size, as children forked from this process, which has imported
everything: so that the moments fall into the work and not into the imports. Before each kill the stage's outputs are
removed, as DVC removes them. After it, whatever has a final name must be whole; after the second run the outputs must be
the undisturbed run's and nothing else may lie beside them. Prints a table; exits non-zero at the first difference.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from d4lens import studies

ROOT = Path(__file__).resolve().parents[1]
PROFILE, ARM, SEED = "smoke", "d4lenspinn", 0
TOPS = [Path(top) / PROFILE for top in ("data", "runs", "metrics", "plots", "reports")]
TIMING = "timing.json"  # clock readings and nothing else
NAMES = {
    "profile.name": PROFILE,
    "profile.page.file": f"reports/{PROFILE}/report.html",
    "item.profile": PROFILE,
    "key": f"{ARM}-{SEED}",
    "item.run": f"--arm {ARM} --seed {SEED}",
}


def filled(text: str, key: str) -> str:
    """A text of dvc.yaml with its names' values; `key` is the study."""
    names = NAMES | {"key": key}
    return re.sub(r"\$\{(.*?)\}", lambda found: names[found[1]], text)


def pipeline() -> dict[str, dict[str, list[str]]]:
    """Of each stage of dvc.yaml, in its order, and of each study: script, arguments and what it writes."""
    found = {}
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        studied = stage.get("foreach") == "${studies}"
        every = [(f"{name}@{study}", study) for study in studies.STUDY_NAMES] if studied else [(name, NAMES["key"])]
        stage = stage.get("do", stage)
        for full_name, key in every:
            outputs = [
                filled(next(iter(out)) if isinstance(out, dict) else out, key)
                for kind in ("outs", "metrics", "plots")
                for out in stage.get(kind, [])
            ]
            found[full_name] = {"command": shlex.split(filled(stage["cmd"], key))[1:], "outputs": outputs}
    return found


PIPELINE = pipeline()
STAGES = tuple(PIPELINE)


@dataclass
class Tally:
    """A stage's kills: done, those of them that found an output already published, and the undisturbed run's seconds."""

    stage: str
    seconds: float = 0.0
    killed: int = 0
    published: int = 0
    too_late: int = 0


def digests(paths: list[Path]) -> dict[str, str]:
    """SHA-256 of every file under `paths`, by its path; of files of clock readings only that they are there."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return {str(f): "" if f.name == TIMING else hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def litter() -> set[str]:
    """Files and folders that no stage declares: temporary ones, in the folders where outputs appear."""
    found = (path for top in TOPS if top.exists() for path in top.rglob(".*"))
    return {str(path) for path in found if path.name not in (".work", ".macrofit.lock")}


def start(stage: str, log: Path) -> int:
    """Fork a child that runs the stage's script; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        name, *arguments = PIPELINE[stage]["command"]
        script = ROOT / name
        sys.argv = [str(script), *arguments]
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(pid: int, stage: str, log: Path) -> None:
    """Wait for a stage that nobody kills."""
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"{stage} failed (status {status}):\n{log.read_text()[-3000:]}")


def project(folder: Path, images: tuple[int, int], binning: int, epochs: int) -> None:
    """A project's parameter files, the smoke profile at the size asked for and with one arm."""
    for name in ("params.yaml", "README.md"):
        shutil.copy(ROOT / name, folder)
    own = folder / "profiles" / PROFILE / "params.yaml"
    own.parent.mkdir(parents=True)
    values = yaml.safe_load((ROOT / "profiles" / PROFILE / "params.yaml").read_text())
    values["profile"] |= {
        "download": {"n_train": images[0], "n_val": images[1]},
        "preprocess": {"bin": binning},
        "train": {"epochs": epochs},
    }
    values["profile"] |= {"arms": [ARM], "seeds": [SEED]}
    for group in values["studies"].values():
        if "arms" in group:
            group["arms"] = [ARM]
    own.write_text(yaml.safe_dump(values))


def campaign(stage: str, kills: int, draw: random.Random, log: Path) -> Tally:
    """Run the stage undisturbed, then kill it `kills` times; exits the process at the first difference."""
    outs, tally = [Path(out) for out in PIPELINE[stage]["outputs"]], Tally(stage)
    begun = time.monotonic()
    finish(start(stage, log), stage, log)
    tally.seconds = round(time.monotonic() - begun, 2)
    reference = digests(outs)
    while tally.killed < kills and tally.too_late < 10 * kills:
        for path in outs:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        # A finished training's result: there would be nothing to kill.
        shutil.rmtree(Path("runs") / PROFILE / ".work", ignore_errors=True)
        pid = start(stage, log)
        time.sleep(draw.uniform(0, tally.seconds))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            tally.too_late += 1
            continue
        tally.killed += 1
        left = {name: digest for name, digest in digests(outs).items() if not Path(name).name.startswith(".")}
        tally.published += bool(left)
        for name, digest in left.items():
            if reference.get(name) != digest:
                sys.exit(f"{stage}: the kill left {name} half written (kill {tally.killed})")
        finish(start(stage, log), stage, log)
        found = digests(outs)
        if found != reference or litter():
            wrong = [name for name in {**found, **reference} if found.get(name) != reference.get(name)]
            sys.exit(f"{stage}: after kill {tally.killed} differ {wrong}, left over {sorted(litter())}")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each stage (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, help="those to kill; later ones are left out"
    )
    parser.add_argument("--images", type=int, nargs=2, default=(72, 36), metavar=("TRAIN", "VAL"))
    parser.add_argument("--bin", type=int, default=2, help="block of pixels summed (default: 2)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    options = parser.parse_args()
    os.environ["D4LENS_TRACKING"] = "off"  # a mirror, whose own faults tests/tracking injects
    out = options.out.resolve() if options.out else None
    # What the stages import; a fork must find one thread only.
    for name in (
        *("data.preprocess", "macrofit", "results.page", "results.plots", "simulator", "tracking", "train"),
        *(f"studies.{study}" for study in studies.STUDY_NAMES),
    ):
        importlib.import_module(f"d4lens.{name}")

    draw, tallies = random.Random(options.seed), []
    with tempfile.TemporaryDirectory(prefix="kill_campaign.") as folder:
        os.chdir(folder)
        project(Path(folder), tuple(options.images), options.bin, options.epochs)
        log = Path(folder) / "log"
        for stage in STAGES[: 1 + max(map(STAGES.index, options.stages))]:
            kills = options.kills if stage in options.stages else 0
            tally = campaign(stage, kills, draw, log)
            tallies.append(asdict(tally))
            print(
                f"{tally.stage}: {tally.killed} kills within {tally.seconds} s, {tally.published} of them with an output "
                f"published, {tally.too_late} too late; equal every time",
                flush=True,
            )
            if out:
                out.write_text(json.dumps(tallies, indent=2) + "\n")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
