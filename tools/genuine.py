"""Score genuine images with every trained arm of a profile: metrics/PROFILE/genuine.json.

python tools/genuine.py PATH --profile quick      (PATH holds no/, sphere/ and vort/ with the images of each class)
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from d4lens.classes import CLASSES
from d4lens.data import images
from d4lens.errors import D4LensError
from d4lens.inference.pipeline import classify, load_classifier
from d4lens.results import genuine
from d4lens.results.outcome import write_outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a folder with one folder of images a class")
    parser.add_argument("--profile", default="quick")
    chosen = parser.parse_args()
    try:
        score(chosen.path, chosen.profile)
    except D4LensError as error:
        sys.exit(f"genuine: {error}")


def score(path: Path, profile: str) -> None:
    """Read `path`, run every network of `runs/<profile>`, write the study. Raises D4LensError for what is missing."""
    weights = sorted(Path("runs", profile).glob("*/model.safetensors"))
    if not weights:
        raise D4LensError(f"runs/{profile} holds no trained network; run make reproduce PROFILE={profile} first")
    sources = {name: list(images.find([path / name])) for name in CLASSES}
    labels = np.repeat(np.arange(len(CLASSES)), [len(found) for found in sources.values()])
    tables = {}
    for file in weights:
        arm, _, seed = file.parent.name.rpartition("-")
        every = [source for found in sources.values() for source in found]
        network = load_classifier(file)
        tables[arm, int(seed), network.config["fingerprint"]] = classify(every, network, progress=False).table
    study = genuine.score_arms(labels, tables, f"python tools/genuine.py PATH --profile {profile}")
    write_outcome(Path("metrics") / profile / "genuine.json", study)
    print(*study.answers, sep="\n")


if __name__ == "__main__":
    main()
