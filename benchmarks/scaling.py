"""Time and disk for a million images, memory at paper size, from what was measured: the tables in docs/scaling.md.

    python benchmarks/scaling.py [--write]

Reads benchmarks/stages.json (stages at 37,500 images of 75 and of 150 px). Time and disk are proportional to the number of
images; memory is not: files are mapped, and only what a process owns must fit.
"""

import argparse
import json
from pathlib import Path

from d4lens.files import write_text

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- scaling:begin -->\n", "<!-- scaling:end -->\n"
MILLION = 1_000_000
NAMES = {"download": "simulate (150 px)", "preprocess": "preprocess", "macrofit": "fit"}


def table() -> str:
    """Markdown, one line a stage."""
    measured = json.loads((HERE / "stages.json").read_text())
    stages = measured["stages"]
    lines = [
        "| stage | measured on | processor ms an image | core hours a million images | peak RSS |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for stage, found in stages.items():
        seconds = found["processor_seconds"] / (found["images"] * found["epochs"])
        times = f" × {found['epochs']} epochs" if found["epochs"] > 1 else ""
        name = NAMES.get(stage, f"{stage}, an epoch")
        hours, peak = seconds * MILLION / 3600, found["peak_megabytes"] / 1e3
        lines.append(f"| {name} | {found['images']:,}{times} | {seconds * 1e3:.1f} | {hours:.1f} | {peak:.1f} GB |")
    lines += ["", "| on disk, a million images | 75 px | 150 px |", "| --- | ---: | ---: |"]
    for name, each in (("counts, uint16", 2), ("residual and significance, float16", 4)):
        sizes = (f"{each * side**2 * MILLION / 1e9:.0f} GB" for side in (75, 150))
        lines.append(f"| {name} | {' | '.join(sizes)} |")
    lines += ["", "| 37,500 images of 150 px | peak RSS |", "| --- | ---: |"]
    for stage, megabytes in measured["peak_megabytes_at_150_px"].items():
        lines.append(f"| {NAMES.get(stage, stage)} | {megabytes / 1e3:.1f} GB |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/scaling.md")
    found = table()
    print(found)
    if parser.parse_args().write:
        text = DOCUMENT.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        write_text(DOCUMENT, before + BEGIN + found + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
