"""The recipes of CONTRIBUTING.md, performed in a copy of the project."""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def apply_recipe(of: str, touched: list[str], copy: Path) -> None:
    """Apply to `copy` the one diff in which `of` stands; it touches these files and no other."""
    diffs = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
    (diff,) = (text for text in diffs if of in text)
    assert re.findall(r"^\+\+\+ b/(.*)", diff, re.M) == touched
    subprocess.run(["git", "apply", "-"], cwd=copy, input=diff, text=True, check=True)


def copy_of_project(copy: Path, *names: str) -> None:
    """Copy files and folders of the project, without weights."""
    for name in names:
        source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__", "weights")
        shutil.copytree(source, copy / name, ignore=ignored) if source.is_dir() else shutil.copy(source, copy)
