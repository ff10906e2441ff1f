"""What can be read off each layer by a straight line, beside control tasks, untrained networks and raw pixels."""

from pathlib import Path

from common import arguments, one_sentence, overlay, parameters, read

from d4lens import studies
from d4lens.allocator import keep_freed_memory
from d4lens.interpret import figures, networks, probing, samples
from d4lens.params import ProbingParams


@one_sentence
def main() -> None:
    keep_freed_memory()
    profile = arguments(__doc__).profile
    params = parameters("probing", ProbingParams, profile)
    matrix = read(overlay(profile))
    trained = Path("runs") / profile / "trained"
    arms = networks.load_arms(trained, params.models, matrix["models"], matrix["seeds"])
    observation = arms[0].observation
    seen = probing.views(samples.simulate(params.images, params.seed, observation), params.seed)
    nets = [(arm.name, "trained", arm.networks[0]) for arm in arms]
    nets += [(arm.name, "untrained", arm.untrained(params.seed)) for arm in arms]
    if params.twin not in [arm.name for arm in arms]:
        twin = networks.untrained("d4lenspinn", observation, params.seed, unet_kind="plain_width")
        nets.append((params.twin, "untrained", twin))
    seeds = [params.seed + i for i in range(params.splits)]
    rows = []
    for name, state, network in nets:
        found = probing.features(network, seen.batch)
        rows += probing.records(name, state, found, seen, params.dimension, seeds)
    path = f"plots/{profile}/interpret/probing.svg"
    shown = studies.Figure(
        path,
        "What a linear probe reads off each layer",
        "Selectivity (score less control) of the probes on the trained networks, with 95 % intervals over splits and projections.",
        f"python stages/probing.py --profile {profile}",
    )
    outcome = probing.study(rows, params.dimension, params.twin, [shown])
    drawn = [r for r in rows if r["quantity"] == "selectivity" and r["state"] == "trained"]
    figures.intervals(path, drawn, "model", "layer", "target", "selectivity", marks=(0, 1))
    studies.write(f"metrics/{profile}/interpret/probing.json", outcome)
    print("\n".join(outcome.answers))


if __name__ == "__main__":
    main()
