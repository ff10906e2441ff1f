"""The weights of one trained network beside those of all others: the one folder that the studies depend on."""

import shutil
from pathlib import Path

from common import arguments, one_sentence

from d4lens.errors import D4LensError
from d4lens.files import atomic_path


@one_sentence
def main() -> None:
    args = arguments(__doc__, arm=True)
    runs, name = Path("runs") / args.profile, f"{args.model}-{args.seed}"
    source = runs / name / "model.safetensors"
    if not source.is_file():
        raise D4LensError(f"there is no {source}; run the stage train")
    with atomic_path(runs / "trained" / f"{name}.safetensors") as temporary:
        shutil.copyfile(source, temporary)
    print(f"{name}: weights laid out")


if __name__ == "__main__":
    main()
