"""One training of a profile; the epoch is chosen on the selection split. Interrupted, it goes on where it was."""

from pathlib import Path

from common import arguments, one_sentence, training_parameters, warn_of_own_values

from d4lens.allocator import keep_freed_memory
from d4lens.data import arrays
from d4lens.files import sha256
from d4lens.models import weights
from d4lens.parallel import ranks
from d4lens.params import Training
from d4lens.tracking import Tracker, enabled, run_tags
from d4lens.train import fingerprint, train_network


@one_sentence
def main() -> None:
    keep_freed_memory()
    args = arguments(__doc__, arm=True)
    profile, training = args.profile, Training(args.arm, args.seed, args.limit, args.epochs)
    arm, (*earlier, params) = training_parameters(profile, training)
    is_main = ranks().is_main
    if is_main:
        warn_of_own_values(profile)

    data, runs = Path("data") / profile, Path("runs") / profile
    images = sha256(data / "arrays" / arrays.MANIFEST)
    inputs = (data / "arrays", data / "macrofit")
    work, start = runs / ".work" / training.name, None
    for first in earlier:
        before = work.with_name(f"{training.name}-first")
        train_network(*inputs, before / "out", before, arm.network, arm.options, training.seed, first)
        start = before / "out" / "model.safetensors"
    name = fingerprint(*inputs, arm.network, arm.options, training.seed, params, start=start)
    shown = {"arm": arm.model_dump(), "train": params.model_dump(), "seed": training.seed}
    tags = run_tags(".", "train", profile, training.row, training.seed, images)
    mirrored = enabled() and is_main
    with Tracker(mirrored, ".", f"d4lens-{profile}", f"{profile}/{training.name}", name, shown, tags) as tracker:
        best = train_network(
            *inputs,
            runs / training.name,
            work,
            arm.network,
            arm.options,
            training.seed,
            params,
            tracker,
            start=start,
        )
    if is_main:
        tensors, description = weights.read(runs / training.name / "model.safetensors")
        # The code's digest would have all studies run again after an edit that changed no weight.
        del description["fingerprint"]
        weights.write(runs / "trained" / f"{training.name}.safetensors", tensors, description)
        print(f"{training.name}: epoch {best['epoch']} chosen, macro AUC {best['select_auc_macro']:.4f} on select")


if __name__ == "__main__":
    main()
