"""The consistency gate: the committed dvc.lock matches parameters and code, and the documents' numbers match the metrics.

Reads only what is in git, so it passes on a clone that never ran the pipeline.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd

import profiles
from d4lens.errors import D4LensError
from d4lens.results import card, documents

PIPELINES = [Path("dvc.yaml"), *sorted(Path("profiles").glob("*/dvc.yaml"))]


def stale_stages(pipeline: Path) -> list[str]:
    """Stages that DVC would run again although their outputs are only missing here, not out of date."""
    command = [sys.executable, "-m", "dvc", "repro", "--dry", "--allow-missing", str(pipeline)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        return [answer.stderr.strip().splitlines()[-1]]
    return [line.split("'")[1] for line in answer.stdout.splitlines() if line.startswith("Running stage")]


def main() -> None:
    faults = [f"{path}: not what its sources say; run make profiles" for path in profiles.stale()]
    for pipeline in PIPELINES:
        if not pipeline.with_name("dvc.lock").is_file():
            print(f"{pipeline}: never run, nothing to hold it against")
            continue
        stale = stale_stages(pipeline)
        faults += [f"{pipeline}: out of date: {stage}; run the pipeline and commit dvc.lock" for stage in stale]
        if not stale:
            print(f"{pipeline}: dvc.lock matches parameters and code")
    try:
        faults += [f"{path}: its numbers are not those of metrics/; run make publish" for path in documents.stale(".")]
        if Path("docs", card.FILE).read_text(encoding="utf-8") != card.of_package("metrics"):
            faults.append(f"docs/{card.FILE} is not that of the package's weights and metrics; run make publish")
    except D4LensError as error:
        faults.append(str(error))
    parts = [pd.read_csv(path) for path in Path("metrics").glob("*/results.csv")]
    keys = ["profile", "arm", "seed", "tta"]
    joined, whole = pd.concat(parts).sort_values(keys), pd.read_csv("metrics/results.csv").sort_values(keys)
    if not joined.reset_index(drop=True).equals(whole.reset_index(drop=True)):
        faults.append("metrics/results.csv is not the profiles' tables joined; run make reproduce and commit it")
    if not faults:
        print("documents, model card and metrics/results.csv match metrics/*/")
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
