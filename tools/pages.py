"""Runs the documentation: every ```sh and ```python block of a page, in order, in one empty folder.

A ```text block after one is what it must print, numbers to 2 % or 0.001. `<!-- not run: why -->` on the line before a
block leaves it out; after `<!-- fails -->` its last command must end with status 1, and its output is what it says of the error. Commands of d4lens run in this process, which saves each the import of torch; any other line goes to
a shell. `make publish` writes the pages' outputs anew, as after other weights were put into the package.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from d4lens.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/your-images.md", "docs/faq.md", "docs/own-preset.md")
_BLOCK = re.compile(
    r"(?P<mark><!-- (?:not run: .+?|fails) -->\n)?^```(?P<language>sh|python)\n(?P<code>.*?)^```$(\n\n```text\n(?P<text>.*?)^```$)?",
    re.M | re.S,
)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?|[-+]?\.\d+", re.I)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    expected: str | None
    fails: bool = False


def blocks(page: str) -> list[Block]:
    """What of a page is to be run."""
    return [
        Block(found["language"], found["code"], found["text"], fails=found["mark"] is not None)
        for found in _BLOCK.finditer(page)
        if not (found["mark"] or "").startswith("<!-- not run")
    ]


def run(block: Block, names: dict[str, object]) -> str:
    """What a block prints; python blocks of a page share `names`."""
    if block.language == "python":
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block.code, "<page>", "exec"), names)
        return out.getvalue()
    printed, status = "", 0
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "d4lens" and not set("|><;&$`") & set(line):
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                status = main(words[1:])
            said = err.getvalue().splitlines(keepends=True) if block.fails else []
            printed += (
                out.getvalue() if not block.fails else "".join(line for line in said if line.startswith("d4lens "))
            )
        else:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                ["bash", "-c", line], capture_output=True, text=True, env={**os.environ, "PATH": path}
            )
            status, printed = done.returncode, printed + done.stdout
        if status and not block.fails:
            raise RuntimeError(f"{line!r} ended with status {status}")
    if block.fails and status != 1:
        raise RuntimeError(f"{block.code!r} was to fail and ended with status {status}")
    return printed


def same(printed: str, expected: str) -> bool:
    """Equal but for numbers, which agree to 2 % or 0.001."""
    if _NUMBER.sub("#", printed.strip()) != _NUMBER.sub("#", expected.strip()):
        return False
    pairs = zip(_NUMBER.findall(printed), _NUMBER.findall(expected), strict=True)
    return all(abs(float(a) - float(b)) <= max(0.02 * abs(float(b)), 1e-3) for a, b in pairs)


def refreshed(page: str) -> str:
    """The page with what its blocks print now in place of what they printed; they run in the current folder."""
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        printed = run(block, names)
        if block.expected is not None:
            page = page.replace(f"```text\n{block.expected}```", f"```text\n{printed}```", 1)
    return page
