"""What a study is to the rest of the project: parameters, needs, a function that computes, and drawings.

The stage `study` checks the parameters, hands the study its `Inputs`, and publishes the outcome and the drawings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from d4lens.data.arrays import atomic_folder
from d4lens.errors import D4LensError
from d4lens.files import held, sweep, write_json
from d4lens.params import ParameterGroup
from d4lens.results import charts
from d4lens.results.outcome import DrawingRecord, Outcome, write_outcome
from d4lens.results.tables import write_csv
from d4lens.studies.networks import TrainedArm, load_arms

NEEDS = {
    "arrays": "data/{profile}/arrays",
    "fits": "data/{profile}/macrofit",
    "networks": "runs/{profile}/trained",
    "predictions": "runs/{profile}/predicted",
}
"""What a study may need, and the folder of a profile it lies in; the stage `study` of dvc.yaml depends on all of them."""


@dataclass(frozen=True)
class Drawing:
    """One figure of a study, before it is written.

    Attributes
    ----------
    name : of its files, NAME.csv and NAME.json.
    title, caption : shown with it; the caption stands alone.
    table : what is drawn; it becomes the CSV file.
    spec : how, as `results.charts` describes it; it becomes the JSON file, a template for `dvc plots`.
    """

    name: str
    title: str
    caption: str
    table: pd.DataFrame
    spec: charts.Spec


@dataclass(frozen=True)
class Inputs:
    """What earlier stages made of a profile.

    Attributes
    ----------
    profile : its name.
    needs : keys of NEEDS; what is not among them is refused, so that a study declares what it reads.
    profile_arms, seeds : those of the profile's table.
    root : the project's folder.
    """

    profile: str
    needs: Sequence[str]
    profile_arms: Sequence[str]
    seeds: Sequence[int]
    root: Path = Path(".")

    def folder(self, need: str) -> Path:
        """Find the folder of one of the declared needs.

        Parameters
        ----------
        need : str
            A key of NEEDS.

        Returns
        -------
        Path

        Raises
        ------
        ValueError
            For one that the study does not declare.
        D4LensError
            If the folder is not there.
        """
        if need not in self.needs:
            raise ValueError(f"the study reads {need!r} and declares only {', '.join(self.needs)}")
        path = self.root / NEEDS[need].format(profile=self.profile)
        if not path.is_dir():
            raise D4LensError(f"there is no {path}; run make reproduce PROFILE={self.profile}")
        return path

    def arms(self, wanted: Sequence[str], every: bool = False) -> list[TrainedArm]:
        """Load trained arms; needs "networks".

        Parameters
        ----------
        wanted : sequence of str
            The arms.
        every : bool
            As for `load_arms`.

        Returns
        -------
        list of TrainedArm
            As `load_arms` returns them.
        """
        return load_arms(self.folder("networks"), wanted, self.profile_arms, self.seeds, every)

    def predictions(self) -> dict[str, Path]:
        """Name the file of each arm's predictions of the test split by its first seed; needs "predictions".

        Returns
        -------
        dict of str to Path
            By arm.
        """
        folder = self.folder("predictions")
        return {arm: folder / f"{arm}-{self.seeds[0]}.parquet" for arm in self.profile_arms}


@dataclass(frozen=True)
class Study:
    """A plug-in of the pipeline; each file of a study defines one under the name STUDY.

    Attributes
    ----------
    title : its heading on the page.
    parameters : the type of its group in params.yaml.
    needs : keys of NEEDS.
    run : of its parameters and `Inputs`, the outcome and the drawings.
    """

    title: str
    parameters: type[ParameterGroup]
    needs: Sequence[str]
    run: Callable[[Any, Inputs], tuple[Outcome, Sequence[Drawing]]]


def publish_study(
    name: str, title: str, profile: str, outcome: Outcome, drawings: Sequence[Drawing], root: Path = Path(".")
) -> None:
    """Write what a study found: metrics/PROFILE/studies/NAME.json and the folder plots/PROFILE/studies/NAME.

    The folder takes its place as a whole, before the outcome that names its files.

    Parameters
    ----------
    name, title : str
        The study's.
    profile : str
        The profile's.
    outcome : Outcome
        What it found.
    drawings : sequence of Drawing
        Its figures.
    root : Path
        The project's folder.
    """
    folder = f"plots/{profile}/studies/{name}"
    sweep(root / folder)
    with atomic_folder(root / folder) as temporary, held(temporary):
        for drawing in drawings:
            write_csv(temporary / f"{drawing.name}.csv", drawing.table)
            write_json(temporary / f"{drawing.name}.json", charts.template(drawing.spec))
    command = f"python stages/study.py --profile {profile} --study {name}"
    figures = [DrawingRecord(f"{folder}/{d.name}.csv", d.title, d.caption, command) for d in drawings]
    write_outcome(
        root / "metrics" / profile / "studies" / f"{name}.json", replace(outcome, title=title, figures=figures)
    )
