"""How exactly each layer turns with the image, and what turning the image does to the decision."""

from pathlib import Path

import numpy as np
import torch
from common import arguments, one_sentence, overlay, parameters, read

from d4lens import studies
from d4lens.allocator import keep_freed_memory
from d4lens.data import arrays
from d4lens.interpret import figures, networks, symmetry
from d4lens.macrofit.split import MAPS
from d4lens.params import SymmetryParams
from d4lens.train.data import load


@one_sentence
def main() -> None:
    keep_freed_memory()
    profile = arguments(__doc__).profile
    params = parameters("symmetry", SymmetryParams, profile)
    matrix, data = read(overlay(profile)), Path("data") / profile
    observation = arrays.load_observation(data / "arrays")
    arms = networks.load_arms(Path("runs") / profile / "trained", matrix["models"], matrix["models"], matrix["seeds"])
    lenses = load(data / "arrays", data / "macrofit", "test", ("counts", *MAPS, "fit"), observation)
    rows = np.linspace(0, len(lenses) - 1, min(params.images, len(lenses))).round().astype(int)
    batches = [lenses[part] for part in np.array_split(rows, -(-len(rows) // 40))]
    few, labels = lenses[rows[:: max(1, len(rows) // params.layer_images)]], lenses.labels[rows]
    found = []
    for arm in arms:
        for state, network in (("trained", arm.networks[0]), ("untrained", arm.untrained(params.seed))):
            errors = {kind: symmetry.errors(network.to(kind), few, kind) for kind in (torch.float64, torch.float32)}
            found += symmetry.layer_records(arm.name, state, errors, len(few["counts"]))
        orbits = [symmetry.orbit(network.float(), batches) for network in arm.networks]
        found += symmetry.orbit_records(arm.name, orbits, labels, params.bootstrap, params.seed)
    folder, command = f"plots/{profile}/interpret", f"python stages/symmetry.py --profile {profile}"
    errors_title, flips_title = "Equivariance error of each layer", "Predictions that a turn of the image changes"
    shown = [
        studies.Figure(
            f"{folder}/symmetry.svg", errors_title, "Largest relative error over the elements of D4.", command
        ),
        studies.Figure(f"{folder}/symmetry_flips.svg", flips_title, "Share of test images, 95 % intervals.", command),
    ]
    outcome = symmetry.study(found, shown)
    drawn = [r for r in found if r["quantity"] == "equivariance_error" and r["state"] == "trained" and r["value"] > 0]
    marks = [symmetry.bound(kind) for kind in (torch.float32, torch.float64)]
    figures.intervals(shown[0].file, drawn, "model", "layer", "precision", "relative error", log=True, marks=marks)
    flips = [{**r, "panel": "flipped"} for r in found if r["quantity"] == "flipped"]
    figures.intervals(shown[1].file, flips, "panel", "model", "view", "share of images", marks=(0,))
    studies.write(f"metrics/{profile}/interpret/symmetry.json", outcome)
    print("\n".join(outcome.answers))


if __name__ == "__main__":
    main()
