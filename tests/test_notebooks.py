"""The notebooks run from top to bottom, at the small sizes they are written in."""

import importlib.util
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("lessons", ROOT / "tools" / "lessons.py")
lessons = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lessons)
NAMES = (*lessons.LESSONS, "controls", "interpretability")


def outputs(book) -> list[dict]:
    """What the cells of a notebook show."""
    return [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]


def test_these_are_all_of_them():
    assert sorted(path.stem for path in lessons.FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kept = nbformat.read(lessons.FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(kept)
    ran = lessons.run(name)
    if name not in lessons.LESSONS:
        assert outputs(kept) == []  # nothing measured is kept in it
        return
    shown = outputs(kept)
    assert {output.output_type for output in shown} == {"execute_result"}
    assert sum("image/png" in output.data for output in shown) >= 2
    assert [sorted(output.data) for output in shown] == [sorted(output.data) for output in outputs(ran)]
