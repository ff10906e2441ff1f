"""The results table of a profile, its README copy, and the curves behind it."""

from itertools import chain, product
from pathlib import Path

from common import arguments, one_sentence, overlay, parameters, read

from d4lens import files
from d4lens.files import write_json, write_text
from d4lens.params import EvaluateParams, ReportParams
from d4lens.results import card, mirror, plots, predictions, tables

METRICS, README, CARD = Path("metrics"), Path("README.md"), Path("docs") / card.FILE


def arms_of(profile: str) -> list[tuple[str, int]]:
    # not what lies in the folders: an arm that was dropped from the matrix leaves its files
    matrix = read(overlay(profile))
    return list(product(matrix["models"], matrix["seeds"]))


def build(profile: str) -> None:
    folder, runs, pictures = METRICS / profile, Path("runs") / profile / "evaluation", Path("plots") / profile
    arms = {(model, seed): f"{model}-{seed}" for model, seed in arms_of(profile)}
    timing = {name: files.read_json(runs / name / "timing.json") for name in arms.values()}
    rows = [
        tables.rows(files.read_json(folder / "evaluation" / f"{name}.json"), timing[name]["train_minutes"])
        for name in arms.values()
    ]
    results = tables.table(chain.from_iterable(rows))
    predicted = {arm: predictions.read(runs / name / "predictions.parquet") for arm, name in arms.items()}
    bootstrap = parameters("evaluate", EvaluateParams, profile)
    # Holm multiplies the smallest p-value by the number of pairs; with four times the resamples it can still be small.
    comparisons = predictions.compare(predicted, 4 * bootstrap.bootstrap, bootstrap.seed)
    tables.write_profile(folder, results, parameters("report", ReportParams, profile).caption, comparisons)
    write_json(folder / "timing.json", timing)
    curves, confusions = plots.curves(predicted), plots.confusions(predicted)
    for name, table, draw in (("roc", curves, plots.draw_roc), ("confusion", confusions, plots.draw_confusion)):
        tables.write_csv(pictures / f"{name}.csv", table)
        draw(pictures / f"{name}.svg", table)


@one_sentence
def main() -> None:
    # --print: after a run, and after a restored one too, the files that no single profile owns
    args = arguments(__doc__, flags={"print": "only join the profiles' tables, renew the README and print"})
    profile = args.profile
    if not args.print:
        build(profile)
    text = tables.table_text(METRICS / profile)
    tables.join_profiles(METRICS)
    tables.update_readme(README, METRICS)
    if args.print:
        write_text(CARD, card.of_package(METRICS))
        mirror.mirror(Path("."), profile, arms_of(profile), parameters("report", ReportParams, profile).page)
    print(text)


if __name__ == "__main__":
    main()
