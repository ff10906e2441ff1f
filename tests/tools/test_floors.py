"""The floors in ARCHITECTURE.md are those that import-linter holds, and an import that goes up is found."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "src"), "PATH": ""},
        capture_output=True,
        text=True,
    )


def test_the_page_shows_the_contract():
    done = subprocess.run([sys.executable, ROOT / "tools" / "floors.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_an_import_that_goes_up_is_named(copy):
    pytest.importorskip("importlinter")
    room = copy / "src" / "d4lens" / "lensing" / "pixels.py"
    room.write_text(room.read_text(encoding="utf-8") + "\nfrom d4lens.train import train_network\n", encoding="utf-8")
    done = lint(copy)
    assert done.returncode == 1
    assert re.search(r"d4lens\.lensing\.pixels -> d4lens\.train", done.stdout)


def test_a_new_room_must_be_given_a_floor(copy):
    pytest.importorskip("importlinter")
    (copy / "src" / "d4lens" / "attic.py").write_text('"""A room that nobody planned."""\n', encoding="utf-8")
    done = lint(copy)
    assert done.returncode == 1
    assert "d4lens.attic" in done.stdout
