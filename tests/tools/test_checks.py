"""`.ci/run`, the workflows and the pre-commit hook call the Makefile's targets, and nothing of their own."""

import re
from pathlib import Path

import yaml
from pre_commit.clientlib import load_config

ROOT = Path(__file__).resolve().parents[2]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def targets(words: str) -> set[str]:
    """Those of a command line `make …`, without its variables."""
    make, *rest = words.split()
    assert make == "make"
    return {word for word in rest if "=" not in word and not word.startswith("-")}


def of_workflow(name: str) -> set[str]:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())["jobs"]["make"]
    *setup, last = (step["run"] for step in job["steps"] if "run" in step)
    assert last == "make ${{ matrix.target }}"
    matrix = job["strategy"]["matrix"]
    each = [*matrix["target"], *(row["target"] for row in matrix.get("include", []))]
    return set().union(*map(targets, [*setup, *(f"make {target}" for target in each)]))


def test_the_workflow_runs_what_a_submission_must_pass():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    must_pass = set().union(*(targets(line) for line in lines if line.startswith("make ")))
    assert must_pass == of_workflow("ci.yml") - {"setup"}
    assert must_pass | of_workflow("nightly.yml") <= TARGETS


def test_the_hook_is_make_lint_and_fetches_nothing():
    (repo,) = load_config(str(ROOT / ".pre-commit-config.yaml"))["repos"]
    (hook,) = repo["hooks"]
    assert (repo["repo"], hook["language"] in {"system", "unsupported"}) == ("local", True)
    assert targets(hook["entry"]) == {"lint"}
