"""docs/reliability.md names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"


def rows() -> list[list[str]]:
    """The cells of the page's tables of faults."""
    faults, _ = PAGE.read_text(encoding="utf-8").split("## Campaigns")
    lines = [line for line in faults.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "fault"]


def existing() -> set[str]:
    """Names of the tests that pytest collects."""
    names = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names |= {item.name for item in body if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")}
    return names


def test_every_fault_names_tests_that_exist():
    found = rows()
    assert len(found) > 40
    there = existing()
    for row in found:
        assert len(row) == 4, row
        named = re.findall(r"`(\w+)`", row[3])
        assert named, row
        assert set(named) <= there, set(named) - there
