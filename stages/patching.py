"""Which layers decide: activations exchanged between images with substructure and the same images without."""

from pathlib import Path

from common import arguments, one_sentence, overlay, parameters, read

from d4lens import studies
from d4lens.allocator import keep_freed_memory
from d4lens.interpret import figures, networks, patching, samples
from d4lens.params import PatchingParams


@one_sentence
def main() -> None:
    keep_freed_memory()
    profile = arguments(__doc__).profile
    params = parameters("patching", PatchingParams, profile)
    matrix = read(overlay(profile))
    trained = Path("runs") / profile / "trained"
    arms = networks.load_arms(trained, params.models, matrix["models"], matrix["seeds"])
    clean, corrupt = samples.pairs(params.pairs, params.seed, arms[0].observation)
    measured, fresh = {}, {}
    for arm in arms:
        measured[arm.name] = [patching.measure(network, clean, corrupt, params.controls) for network in arm.networks]
        untrained = arm.untrained(params.seed)
        fresh[arm.name] = patching.measure(untrained, clean, corrupt, params.controls, only_denoising=True)
    folder = f"plots/{profile}/interpret"
    command = f"python stages/patching.py --profile {profile}"
    shown = [
        studies.Figure(
            f"{folder}/patching.svg",
            "Logit difference recovered by each layer",
            "Share of the logit difference between the image with substructure and without that one layer's activation brings "
            "back (denoising) or takes away (noising), with 95 % intervals over pairs, and the controls.",
            command,
        ),
        studies.Figure(
            f"{folder}/patching_regions.svg",
            "Logit difference recovered by each region",
            "The same with a map patched within one region only: the ring, around the true substructure, as far on the other "
            "side, and everywhere else.",
            command,
        ),
    ]
    outcome = patching.study(measured, fresh, params.min_difference, params.bootstrap, params.seed, shown)
    by_layer = [r for r in outcome.records if r["quantity"] in patching.DRAWN]
    regions = [r for r in outcome.records if r["part"] == "region" and r["quantity"] in patching.REGIONS]
    share = "share of the logit difference"
    figures.intervals(f"{folder}/patching.svg", by_layer, "model", "layer", "quantity", share, marks=(0, 1))
    figures.intervals(f"{folder}/patching_regions.svg", regions, "model", "quantity", "layer", share, marks=(0, 1))
    studies.write(f"metrics/{profile}/interpret/patching.json", outcome)
    print("\n".join(outcome.answers))


if __name__ == "__main__":
    main()
