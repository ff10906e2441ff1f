"""Write the files of the profiles that follow from others: trainings.yaml from their parameters, dvc.yaml from the root's,
plots/PROFILE/dvc.yaml, which shows the studies' charts in `dvc plots`, from what the studies drew.

DVC's `matrix` makes one grid of a stage; a profile may hold several. So `foreach` goes over trainings.yaml, where the
grids are written out.
"""

import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

from common import PROFILES, arms_and_networks, measured, one_sentence

from d4lens.files import write_text

HEAD = "# From `profile` and `grids` of params.yaml by `make profiles`; edit those.\n"


def generated() -> dict[Path, str]:
    """Path and text of every file that follows from others."""
    arms, _ = arms_and_networks()
    folders = {"quick": Path(".")} | {path.name: path for path in sorted(PROFILES.iterdir()) if path.is_dir()}
    pipeline = Path("dvc.yaml").read_text(encoding="utf-8")
    found = {folder / "dvc.yaml": pipeline for folder in folders.values()}
    for profile, folder in folders.items():
        trainings = {
            name: {
                "network": arms[training.arm].network,
                "run": {key: value for key, value in training._asdict().items() if value is not None},
            }
            for name, training in measured(profile).items()
        }
        lines = (f"  {name}: {yaml.safe_dump(item, default_flow_style=True, sort_keys=False, width=1000)}"
                 for name, item in trainings.items())  # fmt: skip
        found[folder / "trainings.yaml"] = HEAD + "trainings:\n" + "".join(lines)
    for profile in folders:
        found |= charts(Path("plots") / profile)
    return found


def charts(plots: Path) -> dict[Path, str]:
    """The DVC file that lists a profile's charts, by study; an empty table has nothing to show."""
    shown = []
    for template in sorted(plots.glob("studies/*/*.json")):
        table = template.with_suffix(".csv")
        if len(table.read_text(encoding="utf-8").splitlines()) > 1:
            title = f"{template.parent.name}: {template.stem.replace('_', ' ')}"
            shown.append({str(table.relative_to(plots)): {"template": str(template), "title": title}})
    text = "# From the studies' drawings by `make profiles`.\n" + yaml.safe_dump({"plots": shown}, sort_keys=False)
    return {plots / "dvc.yaml": text} if shown else {}


def stale() -> dict[Path, str]:
    """Those of `generated` that are not there or not so."""
    return {path: text for path, text in generated().items() if not path.is_file() or path.read_text() != text}


@one_sentence
def main() -> None:
    for path, text in stale().items():
        write_text(path, text)


if __name__ == "__main__":
    main()
