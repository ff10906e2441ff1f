"""Everything a profile measured as one page that opens offline."""

from itertools import product
from pathlib import Path

from common import arguments, one_sentence, overlay, parameters, read

from d4lens.params import PageParams
from d4lens.results import page
from d4lens.studies import STUDY_NAMES


@one_sentence
def main() -> None:
    profile = arguments(__doc__).profile
    params = parameters("page", PageParams, profile)
    own = read(overlay(profile))
    arms = list(product(own["profile"]["arms"], own["profile"]["seeds"]))
    offered = {name: name in own["studies"] for name in (*own["studies"], *STUDY_NAMES)}
    page.write_page(params.file, Path("."), profile, arms, offered, params.examples)
    print(f"{params.file}: {Path(params.file).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
