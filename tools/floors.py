"""Draw the floors of the house into ARCHITECTURE.md, from the contract that import-linter holds.

    python tools/floors.py            # renew the picture between the markers
    python tools/floors.py --check    # exit 1 where it is out of date

A room's text is the first sentence of its own docstring, so that it is written once.
"""

import argparse
import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- floors:begin -->", "<!-- floors:end -->"


def floors() -> list[list[str]]:
    """The rooms of each floor, the top one first."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = pyproject["tool"]["importlinter"]["contracts"]
    return [re.split(r"\s*[|:]\s*", layer) for layer in contract["layers"]]


def purpose(room: str) -> str:
    """The first sentence of a room's docstring, without its full stop."""
    path = ROOT / "src" / "d4lens" / room
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def picture() -> str:
    """A Markdown table, a row a room, and the floors' numbers counted from the ground."""
    found = floors()
    lines = ["| floor | room | lives there |", "|---:|---|---|"]
    for height, rooms in zip(range(len(found) - 1, -1, -1), found):
        lines += [f"| {height} | `{_shown(room)}` | {purpose(room)} |" for room in rooms]
    return "\n".join(lines)


def _shown(room: str) -> str:
    return f"{room}/" if (ROOT / "src" / "d4lens" / room).is_dir() else f"{room}.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    options = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    fresh = f"{before}{BEGIN}\n{picture()}\n{END}{after}"
    if options.check:
        sys.exit(fresh != text and "ARCHITECTURE.md: the floors are out of date; run python tools/floors.py")
    PAGE.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
