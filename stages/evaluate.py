"""The test split, never used to choose anything, plain and averaged over the eight symmetries, with intervals."""

from pathlib import Path

import pandas as pd
from common import arguments, one_sentence, parameters

from d4lens import files, models
from d4lens.allocator import keep_freed_memory
from d4lens.data import arrays
from d4lens.files import sha256, write_json
from d4lens.models import averaging
from d4lens.models.averaging import predict_shared
from d4lens.parallel import ranks
from d4lens.params import EvaluateParams, Training
from d4lens.results import plots, predictions
from d4lens.tracking import Tracker, enabled, run_tags
from d4lens.train.lenses import load_lenses


@one_sentence
def main() -> None:
    keep_freed_memory()
    args = arguments(__doc__, arm=True)
    training = Training(args.arm, args.seed, args.limit, args.epochs)
    profile, arm, seed, name, processes = args.profile, training.row, training.seed, training.name, ranks()
    params = parameters("evaluate", EvaluateParams, profile)
    data, runs = Path("data") / profile, Path("runs") / profile
    trained, out = runs / name, runs / "evaluation" / name
    scored = Path("metrics") / profile / "evaluation" / f"{name}.json"

    network, config = models.load(trained / "model.safetensors")
    observation = arrays.load_observation(data / "arrays")
    images = load_lenses(data / "arrays", data / "macrofit", "test", network.needs, observation)
    logits, speed = predict_shared(
        processes, averaging.exported(network).to(processes.device()), images, params.batch_size
    )
    if not processes.is_main:
        return

    table = predictions.tabulate(arrays.load_split(data / "arrays", "test").paths, images.labels, logits)
    facts = {"profile": profile, "arm": arm, "seed": seed, "params": config["n_parameters"]}
    facts |= {"n_train": config["n_train"], "n_test": len(images), "n_pixels": observation.n_pixels}
    facts["fingerprint"] = config["fingerprint"]
    facts["epochs"] = len(pd.read_csv(trained / "history.csv"))
    scores = predictions.score_predictions(table, params.bootstrap, params.seed)
    minutes = files.read_json(trained / "timing.json")["train_minutes"]
    # By itself, without what differs from run to run, for the studies.
    predictions.write_predictions(runs / "predicted" / f"{name}.parquet", table)
    plots.draw_roc(out / "roc.svg", plots.curves({(arm, seed): table}))
    plots.draw_confusion(out / "confusion.svg", plots.confusions({(arm, seed): table}))
    # here and not by the training, which would count as stale with every change of where its history is kept
    files.write_text(Path("metrics") / profile / "history" / f"{name}.csv", (trained / "history.csv").read_text())
    write_json(out / "timing.json", {"train_minutes": minutes, "images_per_second": speed})
    write_json(scored, facts | scores)
    tags = run_tags(".", "evaluate", profile, arm, seed, sha256(data / "arrays" / arrays.MANIFEST))
    shown = {"evaluate": params.model_dump()}
    took = predictions.seconds(minutes, speed, len(images))
    where = (enabled(), ".", f"d4lens-{profile}", f"{profile}/{name}", config["fingerprint"])
    with Tracker(*where, shown, tags, seconds=took) as run:
        run.log_metrics(predictions.flat(scores))
        for path in (out / "roc.svg", out / "confusion.svg", runs / "predicted" / f"{name}.parquet", scored):
            run.log_artifact(path, "evaluation")
    auc = {view: f"{measured['auc_macro']['value']:.4f}" for view, measured in scores.items()}
    print(f"{name}: macro AUC {auc['plain']}, {auc['tta']} with TTA")


if __name__ == "__main__":
    main()
