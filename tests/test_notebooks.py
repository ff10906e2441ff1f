"""The notebooks run from top to bottom, at the small sizes they are written in."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = ("training", "controls", "interpretability")


def test_these_are_all_of_them():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    assert all(not cell.get("outputs") for cell in book.cells)  # nothing measured is kept in a notebook
    assert any("import" in cell.source and "d4lens" in cell.source for cell in book.cells)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
