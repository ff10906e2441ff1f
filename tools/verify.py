"""Hold a fresh results table against the committed one, row by row, within stated tolerances.

    python tools/verify.py --profile quick                  # metrics/quick/results.csv against git's HEAD
    python tools/verify.py --profile quick --against FILE   # against a file

Both must have the same rows. Sizes and parameter counts are equal or it is a miss. Metrics may differ by the tolerances of `models.scores.TABLE`:
another processor or thread count sums in another order, one without bfloat16 in another precision, and a training amplifies
that to about what another seed would change. An arm that has only begun to learn (macro AUC below LEARNT) may be further on
or less far, so only its AUCs are held. On one machine all are equal. Times and the intervals' ends are not
compared. Exit code 1 on any miss.
"""

import argparse
import io
import subprocess
import sys
from pathlib import Path

import pandas as pd

from d4lens.errors import D4LensError
from d4lens.models.scores import METRICS, TABLE
from d4lens.results import tables

EXACT = ("n_train", "n_test", "params", "n_pixels", "epochs")
LEARNT = 0.9
# Three seeds of d4cnn in quick: macro AUC 0.69, 0.55 and 0.56 on the selection split. Where chance gives all labels to one
# class or to another, the rest says nothing: metrics of such arms have a tolerance of their own.


def committed(path: Path) -> pd.DataFrame:
    """The table at HEAD. Raises D4LensError if git has none."""
    answer = subprocess.run(["git", "show", f"HEAD:{path.as_posix()}"], capture_output=True, text=True)
    if answer.returncode:
        raise D4LensError(f"{path} is not committed at HEAD ({answer.stderr.strip()}); name a file with --against")
    return pd.read_csv(io.StringIO(answer.stdout), float_precision="round_trip")


def misses(fresh: pd.DataFrame, reference: pd.DataFrame, scale: float = 1.0) -> list[str]:
    """One sentence for each difference beyond tolerance; `scale` multiplies the tolerances."""
    keys = list(tables.KEYS)
    found = []
    for name in (*keys, *EXACT, *METRICS):
        found += [
            f"the {which} table has no column {name}"
            for which, table in (("fresh", fresh), ("reference", reference))
            if name not in table
        ]
    if found:
        return found
    for which, table in (("fresh", fresh), ("reference", reference)):
        found += [
            f"{_name(tuple(key))}: twice in the {which} table" for key in table[table.duplicated(keys)][keys].to_numpy()
        ]
    if found:
        return found
    old, new = reference.set_index(keys), fresh.set_index(keys)
    found += [f"{_name(key)}: missing from the fresh table" for key in old.index.difference(new.index)]
    found += [f"{_name(key)}: not in the reference" for key in new.index.difference(old.index)]
    for key in old.index.intersection(new.index):
        learnt = old.at[key, "auc_macro"] >= LEARNT
        for name in (*EXACT, *METRICS):
            allowed = 0.0 if name in EXACT else scale * (TABLE[name].tolerance if learnt else TABLE[name].begun)
            was, now = old.at[key, name], new.at[key, name]
            if not abs(now - was) <= allowed:  # a NaN is a miss too
                found.append(f"{_name(key)}: {name} is {now:g}, was {was:g}, allowed ±{allowed:g}")
    return found


def _name(key: tuple) -> str:
    profile, arm, seed, tta = key
    return f"{profile} {arm} seed {seed} {'with TTA' if tta else 'plain'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--fresh", type=Path, help="default: metrics/PROFILE/results.csv")
    parser.add_argument("--against", type=Path, help="default: the same file at git's HEAD")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every tolerance; 0 asks for equality")
    options = parser.parse_args()
    own = Path("metrics") / options.profile / tables.RESULTS
    try:
        fresh = tables.read_results(options.fresh or own)
        reference = tables.read_results(options.against) if options.against else committed(own)
    except D4LensError as error:
        sys.exit(f"verify: {error}")
    found = misses(fresh, reference, options.scale)
    allowed = ", ".join(f"{name} ±{options.scale * metric.tolerance:g}" for name, metric in TABLE.items())
    allowed += f" (an arm below {LEARNT:g}: auc ±{options.scale * TABLE['auc_macro'].begun:g})"
    if found:
        sys.exit("\n".join([*found, f"verify: {len(found)} differences beyond {allowed}"]))
    keys, names = list(tables.KEYS), list(METRICS)
    largest = (fresh.set_index(keys)[names] - reference.set_index(keys)[names]).abs().max()
    print(f"verify: {len(fresh)} rows agree with the committed table within {allowed};")
    print(f"verify: the largest difference is {largest.max():.6f}, of {largest.idxmax()}")


if __name__ == "__main__":
    main()
