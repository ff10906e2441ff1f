"""The predictions of one network beside those of all others: the one folder that the sensitivity study depends on."""

import shutil
from pathlib import Path

from common import arguments, one_sentence

from d4lens.errors import D4LensError
from d4lens.files import atomic_path


@one_sentence
def main() -> None:
    args = arguments(__doc__, arm=True)
    runs, name = Path("runs") / args.profile, f"{args.model}-{args.seed}"
    source = runs / "evaluation" / name / "predictions.parquet"
    if not source.is_file():
        raise D4LensError(f"there is no {source}; run the stage evaluate")
    with atomic_path(runs / "predicted" / f"{name}.parquet") as temporary:
        shutil.copyfile(source, temporary)
    print(f"{name}: predictions laid out")


if __name__ == "__main__":
    main()
