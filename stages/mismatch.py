"""Networks trained on one kind of lens, tried on others: what survives, what the right constants mend, what is flagged."""

from pathlib import Path

import pandas as pd
from common import arguments, one_sentence, overlay, parameters, read

from d4lens.allocator import keep_freed_memory
from d4lens.data import arrays
from d4lens.evaluate import classify, mismatch, study_plots
from d4lens.observation import Observation
from d4lens.params import MismatchParams
from d4lens.results.tables import write_csv
from d4lens.studies import write


@one_sentence
def main() -> None:
    keep_freed_memory()
    profile = arguments(__doc__).profile
    params = parameters("mismatch", MismatchParams, profile)
    data = Path("data") / profile
    facts = arrays.load_facts(data / "arrays")
    native = Observation.from_dict(facts["native"])
    arms = classify.load_arms(Path("runs") / profile / "trained", params.arms, read(overlay(profile))["seeds"][0])
    largest = classify.largest_chi2(pd.read_csv(data / "macrofit" / "train_fit.csv")["chi2"])

    rows = mismatch.run(arms, native, facts["bin"], largest, params)
    study, table = mismatch.study(profile, rows, native, params.answers_for)
    pictures = Path("plots") / profile
    write_csv(pictures / "mismatch.csv", table)
    study_plots.draw_mismatch(pictures / "mismatch.svg", table)
    write(Path("metrics") / profile / "mismatch.json", study)
    print(*study.answers, sep="\n")


if __name__ == "__main__":
    main()
