"""Where decisions come from, against the place of the true substructure: the pointing game."""

from pathlib import Path

from common import arguments, one_sentence, overlay, parameters, read

from d4lens import studies
from d4lens.allocator import keep_freed_memory
from d4lens.interpret import attribution, figures, networks, samples
from d4lens.params import AttributionParams


@one_sentence
def main() -> None:
    keep_freed_memory()
    profile = arguments(__doc__).profile
    params = parameters("attribution", AttributionParams, profile)
    matrix = read(overlay(profile))
    trained = Path("runs") / profile / "trained"
    arms = networks.load_arms(trained, params.models, matrix["models"], matrix["seeds"])
    lenses = samples.simulate(params.images, params.seed, arms[0].observation, "substructure")
    given, rows = (params.bootstrap, params.seed), []
    for name, hits in attribution.baselines(lenses).items():
        rows += attribution.records(name, "baseline", hits, lenses.labels, *given)
    for arm in arms:
        for method in attribution.METHODS:
            hits = attribution.play(arm.networks[0], lenses, params.steps, method)
            rows += attribution.records(arm.name, method, hits, lenses.labels, *given)
        hits = attribution.play(arm.untrained(params.seed), lenses, params.steps, "gradient")
        rows += attribution.records(arm.name, "gradient_untrained", hits, lenses.labels, *given)
    path = f"plots/{profile}/interpret/attribution.svg"
    shown = studies.Figure(
        path,
        "The pointing game",
        "Share of images whose highest point of attribution lies at the true substructure, with 95 % intervals over images; "
        "baselines need no network.",
        f"python stages/attribution.py --profile {profile}",
    )
    outcome = attribution.study(rows, lenses.observation, [shown])
    figures.intervals(path, rows, "class", "model", "method", "share of hits", marks=(0, 1))
    studies.write(f"metrics/{profile}/interpret/attribution.json", outcome)
    print("\n".join(outcome.answers))


if __name__ == "__main__":
    main()
