from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "figures.py"


def test_the_readme_s_lens_is_drawn_with_four_panels(load_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    tool = load_tool(SCRIPT)
    explained = tool.explained_lens()
    assert (explained.likeliest, explained.flag) == ("vort", "")  # a picture to begin with
    tool.lens()
    with Image.open(tmp_path / "docs" / "lens.png") as picture:
        assert picture.width > 3 * picture.height
