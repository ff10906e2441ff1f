"""What could be seen of a substructure, what each arm sees, and what the network recovers: the physical limit."""

from pathlib import Path

from common import arguments, one_sentence, overlay, parameters, read

from d4lens.allocator import keep_freed_memory
from d4lens.data import arrays
from d4lens.evaluate import classify, sensitivity_study
from d4lens.params import SensitivityParams
from d4lens.results.tables import write_csv
from d4lens.studies import write
from d4lens.train.data import load


@one_sentence
def main() -> None:
    keep_freed_memory()
    profile = arguments(__doc__).profile
    params = parameters("sensitivity", SensitivityParams, profile)
    matrix = read(overlay(profile))
    data, runs, seed = Path("data") / profile, Path("runs") / profile, matrix["seeds"][0]
    predicted = {arm: runs / "predicted" / f"{arm}-{seed}.parquet" for arm in matrix["models"]}
    arms = classify.load_arms(runs / "trained", params.arms, seed)
    scene = sensitivity_study.scene(data / "arrays", data / "macrofit")

    limit = sensitivity_study.limit(scene, predicted, params.false_positive_rate)
    subhalos = sensitivity_study.subhalo_map(scene, arms, predicted, params)
    places = sensitivity_study.place_map(scene, arms, predicted, params)
    observation = arrays.load_observation(data / "arrays")
    maps = {}
    for split in ("select", "test"):
        images = load(data / "arrays", data / "macrofit", split, sensitivity_study.NEEDS, observation, with_kappa=True)
        truth = arrays.load_truth(data / "arrays", split)
        maps[split] = sensitivity_study.maps(arms[params.recover], images, truth, params.recover_images)
    recovered = sensitivity_study.recover(
        maps["select"], maps["test"], observation.pixel_scale, params.bootstrap, params.seed
    )

    pictures = Path("plots") / profile
    study, tables = sensitivity_study.study(profile, limit, subhalos, places, recovered, params)
    for name, table in tables.items():
        write_csv(pictures / f"{name}.csv", table)
    sensitivity_study.draw(pictures, tables, params)
    write(Path("metrics") / profile / "sensitivity.json", study)
    print(*study.answers, sep="\n")


if __name__ == "__main__":
    main()
