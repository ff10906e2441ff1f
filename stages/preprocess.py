"""From the archive to memory-mapped counts: every image checked, three splits carved, duplicates across them refused."""

from pathlib import Path
from typing import Literal

from common import arguments, one_sentence, parameters

from d4lens.data.archive import Limits
from d4lens.data.preprocess import build_arrays
from d4lens.params import Fraction, LimitParams, NonNegative, ParameterGroup, Positive, Seed
from d4lens.simulator.priors import preset


class Parameters(ParameterGroup):
    """Group `preprocess`: the instrument (arcsec, counts) and the splits."""

    preset: str
    pixel_scale: Positive | None
    psf_sigma: Positive | None
    sky: NonNegative | None
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
        preset(params.preset).observation,
        params.bin,
        params.select_fraction,
        params.seed,
        Limits(**params.limits.model_dump()),
        pixel_scale=params.pixel_scale,
        psf_sigma=params.psf_sigma,
        sky=params.sky,
    )
    images = ", ".join(f"{split} {sum(by_class.values())}" for split, by_class in facts["images"].items())
    print(f"{folder / 'arrays'}: {images} images of {facts['n_pixels']} pixels, {facts['units']}")


if __name__ == "__main__":
    main()
