"""From the archive to memory-mapped counts: every image checked, three splits carved, duplicates across them refused."""

from pathlib import Path

from common import arguments, one_sentence, parameters

from d4lens.data.archive import Limits
from d4lens.data.preprocess import build
from d4lens.params import PreprocessParams


@one_sentence
def main() -> None:
    profile = arguments(__doc__).profile
    params = parameters("preprocess", PreprocessParams, profile)
    folder = Path("data") / profile
    facts = build(
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
