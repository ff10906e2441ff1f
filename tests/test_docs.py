"""Runs the documentation: every ```sh and ```python block of a page, in order, in one empty folder.

A ```text block after one is what it must print, numbers to 2 % or 0.001. `<!-- not run: why -->` on the line before a
block leaves it out. Commands of d4lens run in this process, which saves each the import of torch; any other line goes to
a shell.
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

import pytest

from d4lens.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/your-images.md",)
_BLOCK = re.compile(
    r"(?P<mark><!-- not run: .+? -->\n)?^```(?P<language>sh|python)\n(?P<code>.*?)^```$(\n\n```text\n(?P<text>.*?)^```$)?",
    re.M | re.S,
)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?|[-+]?\.\d+", re.I)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    expected: str | None


def blocks(page: str) -> list[Block]:
    """What of a page is to be run."""
    return [
        Block(found["language"], found["code"], found["text"])
        for found in _BLOCK.finditer(page)
        if found["mark"] is None
    ]


def run(block: Block, names: dict[str, object]) -> str:
    """What a block prints; python blocks of a page share `names`."""
    if block.language == "python":
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block.code, "<page>", "exec"), names)
        return out.getvalue()
    printed = ""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "d4lens" and not set("|><;&$`") & set(line):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                status = main(words[1:])
            printed += out.getvalue()
        else:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                ["bash", "-c", line], capture_output=True, text=True, env={**os.environ, "PATH": path}
            )
            status, printed = done.returncode, printed + done.stdout
        assert status == 0, f"{line!r} ended with status {status}"
    return printed


def same(printed: str, expected: str) -> bool:
    """Equal but for numbers, which agree to 2 % or 0.001."""
    if _NUMBER.sub("#", printed.strip()) != _NUMBER.sub("#", expected.strip()):
        return False
    pairs = zip(_NUMBER.findall(printed), _NUMBER.findall(expected), strict=True)
    return all(float(a) == pytest.approx(float(b), rel=0.02, abs=1e-3) for a, b in pairs)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_snippets_do_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    found = blocks((ROOT / page).read_text(encoding="utf-8"))
    assert found
    for block in found:
        printed = run(block, names)
        if block.expected is not None:
            assert same(printed, block.expected), f"{block.code}printed\n{printed}instead of\n{block.expected}"


def test_the_runner_sees_what_it_must():
    page = "```sh\na\n```\n\n```text\nx 1.000\n```\n\n<!-- not run: why -->\n```sh\nb\n```\n\n```python\nc\n```\n"
    assert blocks(page) == [Block("sh", "a\n", "x 1.000\n"), Block("python", "c\n", None)]
    assert same("x 1.001\n", "x 1.000")
    for other in ("x 1.1", "y 1.000", "x 1.000 2"):
        assert not same(other, "x 1.000")
    with pytest.raises(AssertionError, match="ended with status 3"):
        run(Block("sh", "exit 3\n", None), {})
    assert run(Block("sh", "echo a | tr a b\n", None), {}) == "b\n"
