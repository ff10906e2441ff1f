"""docs/glossary.md names every arm there is, and no other."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_every_arm_is_in_the_glossary():
    arms = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["arms"]
    section = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").split("## Arms")[1]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(arms)
