"""Everything a profile measured as one page that opens offline."""

from itertools import product
from pathlib import Path

from common import arguments, one_sentence, overlay, parameters, read

from d4lens.params import ReportParams
from d4lens.results import page


@one_sentence
def main() -> None:
    profile = arguments(__doc__).profile
    params = parameters("report", ReportParams, profile)
    matrix = read(overlay(profile))
    arms = list(product(matrix["models"], matrix["seeds"]))
    page.write(params.page, Path("."), profile, arms, list(matrix["studies"]), params.examples)
    print(f"{params.page}: {Path(params.page).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
