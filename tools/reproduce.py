"""Bring a profile's pipeline up to date, as many stages at once as the cores can serve.

    python tools/reproduce.py [PROFILE] [--jobs N] [--force] [--show]

DVC runs one stage after the other; networks as small as these use two cores badly (threads: 1.0 to 1.6 times as fast, stages
side by side: 1.9 times). Each stage is brought up to date by a `dvc repro` of its own, begun once all those it depends on are
done; those on which most depends go first. With one job, as on a machine with a GPU, it is plain `dvc repro`.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

DVC = (sys.executable, "-m", "dvc")
MOST_SECONDS_TO_END = 30.0  # of a stage whose DVC is gone: a trainer ends after its batch
MOST_JOBS = 4  # of up to 2 GB each
CHATTER = (
    "Updating lock file",
    "Use `dvc push`",
    "To track the changes",
    "To enable auto staging",
    "\tgit add",
    "\tdvc config",
)


def pipeline(profile: str) -> str:
    """The dvc.yaml of a profile."""
    return "dvc.yaml" if profile == "quick" else f"profiles/{profile}/dvc.yaml"


def graph(file: str) -> dict[str, set[str]]:
    """Of each stage of a dvc.yaml, in its order, the stages it depends on directly."""
    from dvc.repo import Repo  # a second, which --help does not need

    with Repo() as repo:
        stages = [stage for stage in repo.index.stages if stage.path_in_repo == file]
        needs = repo.index.graph.successors
        return {stage.name: {needed.name for needed in needs(stage) if needed.path_in_repo == file} for stage in stages}


def dependants(needs: dict[str, set[str]]) -> dict[str, set[str]]:
    """Of each stage those that wait for it, directly or through others."""
    found: dict[str, set[str]] = {}
    for name in needs:
        found[name], new = set(), {name}
        while new:
            new = {other for other, before in needs.items() if before & new} - found[name]
            found[name] |= new
    return found


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mend_locks(folder: Path = Path(".dvc/tmp")) -> None:
    """Remove DVC's list of who reads and writes what, `rwlock`, where it is empty or damaged.

    DVC killed while writing it cannot read it ever after (treeverse/dvc#7615). It writes it anew, in place and under the
    lock that is held here, so that a list being written is not taken for a damaged one.
    """
    path = folder / "rwlock"
    if not path.is_file() or _is_json(path):
        return
    from dvc.lock import make_lock  # a second, which an intact list does not need

    with make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder)):
        if path.is_file() and not _is_json(path):
            path.unlink()
            print(f"reproduce: {path} was damaged and is removed; DVC writes it anew", file=sys.stderr)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def run(stage: str, file: str, force: list[str], threads: int, running: set[subprocess.Popen[str]]) -> int:
    """`dvc repro` of one stage, each line it prints behind the stage's name; its exit status."""
    command = [*DVC, "--wait-for-lock", "repro", "--single-item", *force, f"{file}:{stage}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,  # so that `stop` reaches the stage and not DVC alone
    )
    running.add(child)
    with child:
        assert child.stdout
        for line in child.stdout:
            if line.strip() and not line.startswith(CHATTER):
                print(f"[{stage}] {line.rstrip()}\n", end="", flush=True)
    running.remove(child)
    return child.returncode


def stop(child: subprocess.Popen[str]) -> None:
    """End a DVC and the stage it runs, which would otherwise go on without it; a training goes on later from its last epoch."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)


def train_anew(work: Path) -> None:
    """Have the trainers forget what is finished; what was cut off, by an earlier forced run too, is gone on with."""
    if work.is_dir():
        from d4lens.errors import D4LensError
        from d4lens.train import checkpoint  # torch: seconds

        for folder in filter(Path.is_dir, work.iterdir()):
            try:
                checkpoint.forget(folder)
            except D4LensError as error:
                sys.exit(f"reproduce: {error}")


def one_by_one(file: str, force: list[str]) -> int:
    """Plain `dvc repro`; its exit status."""
    child = subprocess.Popen([*DVC, "repro", *force, file], text=True, start_new_session=True)
    try:
        return child.wait()
    except BaseException:
        stop(child)
        # On Ctrl-C Popen's own waiting gives up after a quarter of a second, and a DVC not yet gone blocks the next one.
        child.wait()
        deadline = time.monotonic() + MOST_SECONDS_TO_END
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(child.pid, 0)
                time.sleep(0.05)
        raise


def side_by_side(file: str, jobs: int, force: list[str]) -> list[str]:
    """Run all stages, `jobs` at once; the names of those that failed. What depends on a failed one is not begun."""
    needs = graph(file)
    after = dependants(needs)
    # A stage that none can run beside has all cores. The graph alone decides which ones: with another number of threads
    # sums are rounded differently.
    alone = {name for name in needs if len(after[name]) + sum(name in of for of in after.values()) == len(needs) - 1}
    threads = {name: cores() if name in alone else max(1, cores() // jobs) for name in needs}
    done, failed, children = set[str](), list[str](), set[subprocess.Popen[str]]()
    futures: dict[Future[int], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                begun = {*futures.values(), *done, *failed}
                ready = [name for name in needs if needs[name] <= done and name not in begun]
                ready.sort(key=lambda name: -len(after[name]))
                for name in ready[: 0 if failed else jobs - len(futures)]:
                    futures[pool.submit(run, name, file, force, threads[name], children)] = name
                if not futures:
                    return failed
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    name = futures.pop(future)
                    (failed.append if future.result() else done.add)(name)
        except BaseException:
            for child in list(children):
                stop(child)
            raise


def show(profile: str, file: str) -> None:
    """Print the table, renewing what no single profile owns and MLflow's copy where that may be out of date.

    These take networks and MLflow to import, several seconds, so what they saw is remembered.
    """
    from d4lens import files
    from d4lens.results import tables

    stamp = Path("runs") / profile / ".work" / "shown"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == seen(file):
        print(tables.table_text(Path("metrics") / profile))
        return
    if status := subprocess.run([sys.executable, "tools/show.py", "--profile", profile]).returncode:
        sys.exit(status)
    files.write_text(stamp, seen(file))


def seen(file: str) -> str:
    """State of all that `tools/show.py` reads or writes: tables, the commit, MLflow's store."""
    from d4lens.files import sha256
    from d4lens.tracking.store import DATABASE

    paths = [Path(file).with_suffix(".lock"), *sorted([*Path("metrics").glob("**/results.csv")])]
    parts = [f"{path} {sha256(path)}" for path in paths if path.is_file()]
    parts += [f"tracking {os.environ.get('D4LENS_TRACKING', '')}", f"store {Path(DATABASE).is_file()}"]
    with contextlib.suppress(OSError):  # without git there is no commit to show
        parts.append(subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout)
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", nargs="?", default="quick", help="quick, or a folder of profiles/ (default: quick)")
    parser.add_argument("--jobs", type=int, help="stages at once; default: one a core up to four, one with a GPU")
    parser.add_argument("--force", action="store_true", help="run every stage, changed or not")
    parser.add_argument("--show", action="store_true", help="then print the results table and renew MLflow")
    options = parser.parse_args()
    file, force = pipeline(options.profile), ["--force", "--no-run-cache"] if options.force else []
    if not Path(file).is_file():
        known = ", ".join(["quick", *sorted(path.parent.name for path in Path("profiles").glob("*/dvc.yaml"))])
        sys.exit(f"reproduce: no profile {options.profile!r}; there are {known}")
    if options.jobs is not None and options.jobs < 1:
        sys.exit(f"reproduce: --jobs must be at least 1, not {options.jobs}")
    # Stages call `python`, which must be this one.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    mend_locks()
    jobs = options.jobs or (1 if shutil.which("nvidia-smi") else min(cores(), MOST_JOBS))
    if not force and not subprocess.run([*DVC, "status", "--quiet", file]).returncode:
        print(f"{file}: everything is up to date")
    else:
        if force:
            train_anew(Path("runs") / options.profile / ".work")
        if jobs == 1:
            if status := one_by_one(file, force):
                sys.exit(status)
        elif failed := side_by_side(file, jobs, force):
            sys.exit(
                f"reproduce: {', '.join(failed)} failed, see above; what is done stays done, run the same command again"
            )
    if options.show:
        show(options.profile, file)


if __name__ == "__main__":
    # A shell without job control starts what runs in its background with SIGINT ignored. A handler set here is for the
    # stages too: what a process handles, its children start with at its default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
