"""From the archive to memory-mapped counts: every image checked, three splits carved, duplicates across them refused."""

from pathlib import Path
from typing import Literal

from common import arguments, one_sentence, parameters

from d4lens.data.archive import Limits
from d4lens.data.preprocess import build_arrays
from d4lens.params import Fraction, LimitParams, NonNegative, ParameterGroup, Positive, Seed


class Parameters(ParameterGroup):
    """Group `preprocess`: the instrument (arcsec, counts) and the splits."""

    pixel_scale: Positive
    psf_sigma: Positive
    sky: NonNegative
    select_fraction: Fraction
    seed: Seed
    limits: LimitParams
    bin: Literal[1, 2, 3, 4]


@one_sentence
def main() -> None:
    profile = arguments(__doc__).profile
    params = parameters("preprocess", Parameters, profile)
    folder = Path("data") / profile
    facts = build_arrays(
        folder / "lenses.zip",
        folder / "arrays",
        params.pixel_scale,
        params.psf_sigma,
        params.sky,
        params.bin,
        params.select_fraction,
        params.seed,
        Limits(**params.limits.model_dump()),
    )
    images = ", ".join(f"{split} {sum(by_class.values())}" for split, by_class in facts["images"].items())
    print(f"{folder / 'arrays'}: {images} images of {facts['n_pixels']} pixels, {facts['units']}")


if __name__ == "__main__":
    main()
