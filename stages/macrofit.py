"""Stage macrofit: a smooth lens fitted to each image; its parameters, and the residual the networks read."""

from pathlib import Path
from typing import Annotated, Literal

from common import arguments, one_sentence, parameters
from pydantic import Field

from d4lens.data import arrays
from d4lens.files import require_space, sha256, sole_writer, write_json, writing
from d4lens.macrofit import preset_model
from d4lens.macrofit.columns import SMOOTH_LENS_FILE
from d4lens.macrofit.split import fit_shared, own_observations, remove_parts
from d4lens.macrofit.world import SPECIALIST
from d4lens.observation import Observation
from d4lens.parallel import ranks
from d4lens.params import Count, ParameterGroup


class Parameters(ParameterGroup):
    """Group `macrofit`: which smooth lens is fitted, preset and iterations."""

    model: Literal["specialist", "marginal", "auto"]
    preset: str
    batch_size: Count
    coarse_iterations: Annotated[int, Field(ge=0)]
    fine_iterations: Count
    max_starts: Count


@one_sentence
def main() -> None:
    profile, processes = arguments(__doc__).profile, ranks()
    params = parameters("macrofit", Parameters, profile)
    source, out = Path("data") / profile / "arrays", Path("data") / profile / "macrofit"
    facts = arrays.load_facts(source)
    native = Observation.from_dict(facts["native"])
    model = preset_model(
        params.preset,
        native,
        facts["bin"],
        units=facts["units"],
        device=processes.device(),
    )
    manifest = sha256(source / arrays.MANIFEST)
    with sole_writer(out if processes.is_main else processes.part(out)), writing(out):
        if not out.with_name("macrofit.partial").exists():  # two maps of float16 an image
            n_images = sum(sum(by_class.values()) for by_class in facts["images"].values())
            require_space(out.parent, 4 * n_images * facts["n_pixels"] ** 2)
        for name in arrays.SPLITS:
            split = arrays.load_split(source, name)
            if not len(split):
                continue
            table = fit_shared(
                processes,
                split.counts,
                split.paths,
                model,
                out,
                name,
                source=manifest,
                units=facts["units"],
                smooth_lens=params.model,
                observations=own_observations(arrays.load_truth(source, name), native),
                coarse_iterations=params.coarse_iterations,
                fine_iterations=params.fine_iterations,
                max_starts=params.max_starts,
                batch_size=params.batch_size,
            )
            if not processes.is_main:
                continue
            fitted = f"{table['converged'].sum()} of {len(table)} {name} images converged"
            print(f"{fitted}; median chi2 a pixel {table['chi2'].median():.3f}")
    if processes.is_main and params.model != SPECIALIST:
        write_json(out / SMOOTH_LENS_FILE, {"smooth_lens": params.model})
    remove_parts(processes, out)


if __name__ == "__main__":
    main()
