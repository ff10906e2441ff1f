"""Print a profile's table, and renew what no single profile owns: the joined tables and MLflow's copy."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

from common import arguments, measured, one_sentence, parameters

from d4lens.files import write_text
from d4lens.params import PageParams
from d4lens.results import mirror, tables
from profiles import charts

METRICS = Path("metrics")


@one_sentence
def main() -> None:
    profile = arguments(__doc__).profile
    text = tables.table_text(METRICS / profile)
    for path, listed in charts(Path("plots") / profile).items():
        write_text(path, listed)
    tables.join_profiles(METRICS)
    arms = [(training.row, training.seed) for training in measured(profile).values()]
    mirror.mirror_profile(Path("."), profile, arms, parameters("page", PageParams, profile).file)
    print(text)


if __name__ == "__main__":
    main()
