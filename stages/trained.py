"""The weights of one trained network beside those of all others: the one folder that the studies depend on."""

from pathlib import Path

from common import arguments, one_sentence

from d4lens.models import weights


@one_sentence
def main() -> None:
    args = arguments(__doc__, arm=True)
    runs, name = Path("runs") / args.profile, f"{args.model}-{args.seed}"
    tensors, description = weights.read(runs / name / "model.safetensors")
    # The code's digest would have all studies run again after an edit that changed no weight.
    weights.write(
        runs / "trained" / f"{name}.safetensors",
        tensors,
        {key: value for key, value in description.items() if key != "fingerprint"},
    )
    print(f"{name}: weights laid out")


if __name__ == "__main__":
    main()
