"""`dvc plots show` on the project's committed charts: its page opens without a network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILES = ("dvc.yaml", "params.yaml", "trainings.yaml", "dvc.lock", ".dvc/config", "src/d4lens/results/page/vega.html")
FOLDERS = (".dvc/plots", "plots/quick")


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Path:
    """The page that DVC writes for profile quick, in a folder of what git tracks of its charts."""
    if shutil.which("git") is None:
        pytest.skip("git is needed for a project of DVC's")
    root = tmp_path_factory.mktemp("project")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name)
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "plots", "show"]):
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    return root / "dvc_plots" / "index.html"


def charts() -> int:
    """How many charts profile quick lists: those of its table and of its studies."""
    of_studies = yaml.safe_load((ROOT / "plots/quick/dvc.yaml").read_text(encoding="utf-8"))["plots"]
    of_table = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["table"]["plots"]
    return len(of_studies) + len(of_table)


def test_the_page_names_no_script_style_or_image_of_elsewhere(shown):
    text = shown.read_text(encoding="utf-8")
    tags = re.findall(
        r"<(?:script|link|img|iframe|source)\b[^>]*>", re.sub(r"(?s)(<script>).*?(</script>)", r"\1\2", text)
    )
    assert tags
    assert [tag for tag in tags if "src=" in tag or re.search(r"href=(?!.data:)", tag)] == []


def test_in_a_browser_without_a_network_every_chart_is_drawn(browser, shown):
    context = browser.new_context(offline=True)
    opened, asked, faults = context.new_page(), [], []
    opened.set_default_timeout(120_000)
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(shown.as_uri())
    drawn = opened.locator(".vega-embed canvas, .vega-embed svg.marks")
    drawn.nth(charts() - 1).wait_for(state="attached")
    assert drawn.count() == charts()
    assert all(drawn.nth(i).bounding_box()["height"] > 60 for i in range(charts()))
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert faults == []
    context.close()
