from pathlib import Path

import yaml
from pre_commit.clientlib import load_config

ROOT = Path(__file__).resolve().parents[2]


def test_the_hooks_are_make_lint_s_checks_and_fetch_nothing():
    config = load_config(str(ROOT / ".pre-commit-config.yaml"))
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {hook["language"] for hook in hooks} <= {"system", "unsupported"}
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    for hook in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]:
        tool, *words = hook["entry"].removeprefix(".venv/bin/").split()
        assert " ".join([tool, *(word for word in words if word != "--force-exclude")]) in lint.replace(
            "$(BIN)/", ""
        ).replace(" . ", " ").replace(" .", "")
