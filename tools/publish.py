"""Write what follows from the metrics and the package's network: model card, documents, their pictures, the lessons.

    python tools/publish.py           # for the network that the package holds
    python tools/publish.py --ship    # first put the network of the largest training into the package
    python tools/publish.py --ship marginal   # that for the maps of the marginal fit

A reproduction changes none of these. The card is refused, and nothing written, where the package's network is not the one
that was evaluated. `card.largest_training` says which training is the largest: its rule knows the number of training images
and the seed alone.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import figures
import lessons
import pages
import pandas as pd

from d4lens.data import arrays
from d4lens.errors import D4LensError
from d4lens.files import write_text
from d4lens.flags import decided, largest_chi2
from d4lens.inference.pipeline import SURVEY_WEIGHTS, WEIGHTS
from d4lens.macrofit.world import MARGINAL, SPECIALIST
from d4lens.models import load, weights
from d4lens.models.averaging import exported, predict_logits
from d4lens.models.scores import softmax
from d4lens.results import card, documents
from d4lens.train.lenses import load_lenses as lenses

LARGEST = 15_000_000
_BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ship",
        nargs="?",
        const=SPECIALIST,
        choices=(SPECIALIST, MARGINAL),
        help="put the network of the largest training on this fit's maps into the package",
    )
    shipped = parser.parse_args().ship
    try:
        publish(shipped)
        figures.main()
        answer()
        lessons.refresh()
    except D4LensError as error:
        sys.exit(f"publish: {error}")


def publish(shipped: str | None) -> None:
    """Write card and documents. Raises D4LensError for a card of another network than the evaluated one."""
    if shipped:
        ship(*{SPECIALIST: (card.SHIPPED, WEIGHTS), MARGINAL: (card.SHIPPED_MARGINAL, SURVEY_WEIGHTS)}[shipped])
    text = card.of_package("metrics")
    changed = documents.update(".")
    write_text(Path("docs") / card.FILE, text)
    print(f"docs/{card.FILE} and {len(changed)} documents: {', '.join(map(str, changed)) or 'none changed'}")


def ship(arms: Sequence[str], target: Path) -> None:
    """Write the weights. Raises D4LensError for a training that is missing, or is another than the evaluated one."""
    scores = card.largest_training("metrics", arms)
    profile, arm, seed = scores["profile"], scores["arm"], scores["seed"]
    source = Path("runs") / profile / f"{arm}-{seed}" / "model.safetensors"
    fitted = Path("data") / profile / "macrofit" / "train_fit.csv"
    for file in (source, fitted):
        if not file.is_file():
            raise D4LensError(
                f"the largest training is profile {profile}, seed {seed}, with {scores['n_train']:,} images, and {file} is "
                f"missing; run make reproduce PROFILE={profile}"
            )
    network, description = load(source)
    card.check_card(description, scores, source)
    # Plain layers, so that predicting needs no escnn, which no empty environment can install by its own metadata.
    tensors = exported(network).state_dict()
    description["options"] = {**description["options"], "unet_kind": "exported"}
    description |= {"licence": "MIT", "profile": profile, "arm": arm, "seed": seed}
    # Beyond it `predict` flags an image: a smooth lens fits it worse than all but a thousandth of the training set.
    fits = pd.read_csv(fitted)
    description["largest_chi2"] = largest_chi2(fits["chi2"][fits["converged"]])
    description["decided"] = needed(Path("data") / profile, network)
    size = sum(value.nbytes for value in tensors.values())
    if size > LARGEST:
        raise D4LensError(f"{source} holds {size} bytes of weights, more than the package carries ({LARGEST})")
    weights.write(target, tensors, description)
    print(f"{source} -> {target.name} in the package, {size / 1e6:.2f} MB, fingerprint {description['fingerprint']}")


def needed(data: Path, network: Any) -> float:
    """The probability that the network's labels need, by the selection split."""
    folder, n = data / "arrays", _BATCH
    images = lenses(folder, data / "macrofit", "select", network.needs, arrays.load_observation(folder))
    batches = (images[range(first, min(first + n, len(images)))] for first in range(0, len(images), n))
    return decided(softmax(predict_logits(exported(network), batches, tta=True)), images.labels)


def answer() -> None:
    """Write what the commands of the pages print now in place of what they printed."""
    for path in (pages.ROOT / page for page in pages.PAGES):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            path.write_text(pages.refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
