"""The results table of a profile, and the curves behind it."""

from itertools import chain, groupby
from pathlib import Path

from common import arguments, contrasts, grids, measured, one_sentence, parameters, warn_of_own_values

from d4lens import files
from d4lens.files import write_json
from d4lens.params import EvaluateParams, PageParams, trainings
from d4lens.results import plots, predictions, shallow, tables

METRICS = Path("metrics")


@one_sentence
def main() -> None:
    profile = arguments(__doc__).profile
    folder, runs, pictures = METRICS / profile, Path("runs") / profile, Path("plots") / profile
    # not what lies in the folders: a training that the profile no longer names leaves its files
    names = measured(profile)
    timing = {name: files.read_json(runs / "evaluation" / name / "timing.json") for name in names}
    rows = [
        tables.rows(files.read_json(folder / "evaluation" / f"{name}.json"), timing[name]["train_minutes"])
        for name in names
    ]
    predicted = {
        (training.row, training.seed): predictions.read_predictions(runs / "predicted" / f"{name}.parquet")
        for name, training in names.items()
    }
    bootstrap = parameters("evaluate", EvaluateParams, profile)
    families: dict[str, tables.Family] = {}
    for grid, params in grids(profile).items():
        of_grid = sorted(trainings([params]).values(), key=lambda training: training.limit or 0)
        for limit, group in groupby(of_grid, lambda training: training.limit):
            compared = {key: predicted[key] for key in ((training.row, training.seed) for training in group)}
            of_profile = contrasts(profile) if not grid else []
            pairs = predictions.compare(compared, bootstrap.bootstrap, bootstrap.seed, of_profile)
            label = f"{grid}, {limit:,} images" if limit else grid
            families[label] = tables.Family(tuple(dict.fromkeys(row for row, _ in compared)), pairs)
    caption = parameters("page", PageParams, profile).caption
    main_pairs = families.pop("").comparisons
    data = Path("data") / profile
    baselines = shallow.measure(data / "arrays", data / "macrofit", bootstrap.bootstrap, bootstrap.seed)
    tables.write_profile(folder, tables.table(chain.from_iterable(rows)), caption, main_pairs, families, baselines)
    write_json(folder / "timing.json", timing)
    curves, confusions = plots.curves(predicted), plots.confusions(predicted)
    for name, table in (("roc", curves), ("confusion", confusions)):
        tables.write_csv(pictures / f"{name}.csv", table)
    tables.join_profiles(METRICS)
    print(tables.table_text(folder))
    warn_of_own_values(profile)


if __name__ == "__main__":
    main()
