"""One arm of the table with one seed; the epoch is chosen on the selection split. Interrupted, it goes on where it was."""

from pathlib import Path

from common import arguments, one_sentence, parameters, read

from d4lens.allocator import keep_freed_memory
from d4lens.data import arrays
from d4lens.errors import D4LensError
from d4lens.files import sha256
from d4lens.parallel import ranks
from d4lens.params import ArmParams, TrainParams, check
from d4lens.tracking import Tracker, enabled, run_tags
from d4lens.train import fingerprint, train


@one_sentence
def main() -> None:
    keep_freed_memory()
    arguments_ = arguments(__doc__, arm=True)
    profile, model, seed = arguments_.profile, arguments_.model, arguments_.seed
    arms = read(Path("params.yaml")).get("arms")
    if not isinstance(arms, dict):
        raise D4LensError(f"'arms' in params.yaml must be a group of named arms, not {arms!r}")
    if model not in arms:
        raise D4LensError(f"no arm {model!r} in params.yaml; its arms are {', '.join(arms)}")
    arm = check(ArmParams, arms[model], f"arm {model!r} of params.yaml")
    params = parameters("train", TrainParams, profile)
    changed = params.model_dump() | arm.train
    losses = arm.train.get("losses", {})
    changed["losses"] = params.losses.model_dump() | losses if isinstance(losses, dict) else losses
    params = check(TrainParams, changed, f"group 'train' as arm {model!r} of params.yaml changes it")

    data, run = Path("data") / profile, f"{model}-{seed}"
    images = sha256(data / "arrays" / arrays.MANIFEST)
    inputs = (data / "arrays", data / "macrofit")
    leads = ranks().leads
    name = fingerprint(*inputs, arm.base, arm.options, seed, params)
    shown = {"arm": arm.model_dump(), "train": params.model_dump(), "seed": seed}
    tags = run_tags(".", "train", profile, model, seed, images)
    mirrored = enabled() and leads
    with Tracker(mirrored, ".", f"d4lens-{profile}", f"{profile}/{run}", name, shown, tags) as tracker:
        best = train(
            *inputs,
            Path("runs") / profile / run,
            Path("runs") / profile / ".work" / run,
            arm.base,
            arm.options,
            seed,
            params,
            tracker,
        )
    if leads:
        print(f"{run}: epoch {best['epoch']} chosen, macro AUC {best['select_auc_macro']:.4f} on select")


if __name__ == "__main__":
    main()
