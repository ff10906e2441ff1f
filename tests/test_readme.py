"""README.md as GitHub shows it: nothing needs a scroll bar, and the first screen holds a first answer."""

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
# GitHub's own measures for a repository's page: github-markdown.css, at the width of its column.
STYLE = """
body {margin: 0 auto; width: 830px; font: 16px/1.5 "Noto Sans", Helvetica, Arial, sans-serif}
p, table, pre, ul {margin: 0 0 16px} h1, h2 {margin: 24px 0 16px; line-height: 1.25; padding-bottom: 0.3em}
h1 {margin-top: 0; font-size: 2em} img {max-width: 100%} table {display: block; width: max-content; max-width: 100%;
overflow: auto; border-collapse: collapse} th, td {padding: 6px 13px; border: 1px solid} code {font-family: monospace;
font-size: 85%; padding: 0.2em 0.4em} pre {padding: 16px; overflow: auto; line-height: 1.45} pre code {padding: 0;
font-size: 13.6px}
"""


@pytest.fixture
def shown(browser):
    """README.md in a browser of 1280 x 900."""
    text = MarkdownIt("commonmark").enable("table").render((ROOT / "README.md").read_text(encoding="utf-8"))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    file = ROOT / "build" / "readme.html"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'<base href="{ROOT.as_uri()}/"><style>{STYLE}</style><body>{text}', encoding="utf-8")
    page.goto(file.as_uri(), wait_until="load")
    yield page
    page.close()
    file.unlink()


def test_nothing_is_wider_than_the_column(shown):
    for kind in ("table", "pre"):
        wide = shown.eval_on_selector_all(
            kind, "all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"
        )
        assert wide == []
    assert shown.locator("table").count() >= 3


def test_the_first_screen_holds_title_picture_table_and_quickstart(shown):
    assert shown.locator("h1").count() == 1
    assert shown.eval_on_selector("img", "e => e.naturalWidth") > 1000
    for kind in ("h1", "img", "table", "pre"):
        assert shown.locator(kind).first.evaluate("e => e.getBoundingClientRect().bottom") < 900
