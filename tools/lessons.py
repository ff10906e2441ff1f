"""Runs the lessons of notebooks/ and keeps what they show: tables and pictures, but no clock readings and no warnings."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LESSONS = ("first_lens", "own_preset", "misclassified")
"""Their outputs are committed; the other notebooks are run by the tests alone."""


def run(name: str) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom. Raises nbclient's CellExecutionError where a cell fails."""
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
    for cell in book.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
    return book


def refresh() -> None:
    """Write the lessons with what they show now."""
    for name in LESSONS:
        nbformat.write(run(name), FOLDER / f"{name}.ipynb")
