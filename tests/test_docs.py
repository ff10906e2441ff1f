import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "pages.py"


def _load():
    spec = importlib.util.spec_from_file_location("pages", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pages"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


pages = _load()


@pytest.mark.parametrize("page", pages.PAGES)
def test_commands_and_snippets_do_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    found = pages.blocks((pages.ROOT / page).read_text(encoding="utf-8"))
    assert found
    for block in found:
        printed = pages.run(block, names)
        if block.expected is not None:
            assert pages.same(printed, block.expected), f"{block.code}printed\n{printed}instead of\n{block.expected}"


def test_the_runner_sees_what_it_must():
    page = "```sh\na\n```\n\n```text\nx 1.000\n```\n\n<!-- not run: why -->\n```sh\nb\n```\n\n```python\nc\n```\n"
    assert pages.blocks(page) == [pages.Block("sh", "a\n", "x 1.000\n"), pages.Block("python", "c\n", None)]
    assert pages.same("x 1.001\n", "x 1.000")
    for other in ("x 1.1", "y 1.000", "x 1.000 2"):
        assert not pages.same(other, "x 1.000")
    with pytest.raises(RuntimeError, match="ended with status 3"):
        pages.run(pages.Block("sh", "exit 3\n", None), {})
    assert pages.run(pages.Block("sh", "echo a | tr a b\n", None), {}) == "b\n"
    (failing,) = pages.blocks("<!-- fails -->\n```sh\nd4lens predict nowhere\n```\n")
    assert pages.run(failing, {}) == "d4lens predict: no file or folder nowhere; check the path\n"
    with pytest.raises(RuntimeError, match="was to fail and ended with status 0"):
        pages.run(pages.Block("sh", "true\n", None, fails=True), {})


def test_a_page_is_refreshed_where_it_states_an_output():
    page = "```sh\necho 2\n```\n\n```text\n1\n```\n\nwords\n\n```sh\necho 3\n```\n"
    assert pages.refreshed(page) == page.replace("\n1\n", "\n2\n")
