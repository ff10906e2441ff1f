import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_api_pages_are_made_without_a_fault(tmp_path):
    command = [sys.executable, ROOT / "tools" / "docs.py", "-o", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    for page in (
        "index",
        "d4lens/inference/api",
        "d4lens/studies",
        "d4lens/simulator",
        "d4lens/lensing",
        "d4lens/tracking",
    ):
        assert f"{page}.html" in pages
    assert "95 % interval" in (tmp_path / "d4lens" / "results" / "outcome.html").read_text()
    predict = (tmp_path / "d4lens" / "inference" / "api.html").read_text().partition('id="Model.predict"')[2]
    rows = predict.partition("<table>")[2].partition("</table>")[0]
    assert "<td><code>force_label</code></td>\n  <td>bool</td>\n  <td>Give a label" in rows
    assert rows.count("<tr>") > 5
