"""Put a profile's trained d4lenspinn into the package, its licence and origin in the file: the default of `d4lens predict`.

python tools/ship.py --profile quick --seed 0
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from d4lens.errors import D4LensError
from d4lens.evaluate.classify import largest_chi2
from d4lens.inference.pipeline import WEIGHTS
from d4lens.models import load, weights
from d4lens.models.averaging import exported

MODEL, LARGEST = "d4lenspinn", 15_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    source = Path("runs") / chosen.profile / f"{MODEL}-{chosen.seed}" / "model.safetensors"
    try:
        network, description = load(source)
    except D4LensError as error:
        sys.exit(f"ship: {error}; run make reproduce PROFILE={chosen.profile} first")
    fits = pd.read_csv(Path("data") / chosen.profile / "macrofit" / "train_fit.csv")
    # Plain layers, so that predicting needs no escnn, which no empty environment can install by its own metadata.
    tensors = exported(network).state_dict()
    description["options"] = {**description["options"], "unet_kind": "exported"}
    description |= {"licence": "MIT", "profile": chosen.profile, "seed": chosen.seed}
    # Beyond it `predict` flags an image: a smooth lens fits it worse than all but a thousandth of the training set.
    description["largest_chi2"] = largest_chi2(fits["chi2"])
    weights.write(WEIGHTS, tensors, description)
    size = WEIGHTS.stat().st_size
    if size > LARGEST:
        WEIGHTS.unlink()
        sys.exit(f"ship: {source} is {size} bytes, more than the package carries ({LARGEST})")
    print(f"{source} -> {WEIGHTS.name} in the package, {size / 1e6:.2f} MB, fingerprint {description['fingerprint']}")


if __name__ == "__main__":
    main()
