"""Put the network of the largest training into the package: the default of `d4lens predict`.

python tools/ship.py

Which training that is, `card.largest_training` says: its rule knows the number of training images and the seed alone.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from d4lens.errors import D4LensError
from d4lens.files import write_text
from d4lens.flags import largest_chi2
from d4lens.inference.pipeline import WEIGHTS
from d4lens.models import load, weights
from d4lens.models.averaging import exported
from d4lens.results import card

LARGEST = 15_000_000


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        ship()
    except D4LensError as error:
        sys.exit(f"ship: {error}")


def ship() -> None:
    """Write the weights and renew the model card. Raises D4LensError for a training that is missing or another one."""
    scores = card.largest_training("metrics")
    profile, seed = scores["profile"], scores["seed"]
    source = Path("runs") / profile / f"{card.MODEL}-{seed}" / "model.safetensors"
    fitted = Path("data") / profile / "macrofit" / "train_fit.csv"
    for file in (source, fitted):
        if not file.is_file():
            raise D4LensError(
                f"the largest training is profile {profile}, seed {seed}, with {scores['n_train']:,} images, and {file} is "
                f"missing; run make reproduce PROFILE={profile}"
            )
    network, description = load(source)
    for fact, of in (("n_train", "training images"), ("n_parameters", "parameters")):
        evaluated = scores["params" if fact == "n_parameters" else fact]
        if description[fact] != evaluated:
            raise D4LensError(
                f"{source} has {description[fact]:,} {of}, its evaluation in metrics/{profile} has {evaluated:,}; "
                f"run make reproduce PROFILE={profile}"
            )
    # Plain layers, so that predicting needs no escnn, which no empty environment can install by its own metadata.
    tensors = exported(network).state_dict()
    description["options"] = {**description["options"], "unet_kind": "exported"}
    description |= {"licence": "MIT", "profile": profile, "seed": seed}
    # Beyond it `predict` flags an image: a smooth lens fits it worse than all but a thousandth of the training set.
    description["largest_chi2"] = largest_chi2(pd.read_csv(fitted)["chi2"])
    size = sum(value.nbytes for value in tensors.values())
    if size > LARGEST:
        raise D4LensError(f"{source} holds {size} bytes of weights, more than the package carries ({LARGEST})")
    weights.write(WEIGHTS, tensors, description)
    write_text(Path("docs") / card.FILE, card.of_package("metrics"))
    print(f"{source} -> {WEIGHTS.name} in the package, {size / 1e6:.2f} MB, fingerprint {description['fingerprint']}")


if __name__ == "__main__":
    main()
