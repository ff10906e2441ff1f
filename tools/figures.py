"""The README's picture: one simulated image of each class, and what the fit makes of it. Writes docs/lenses.png."""

import torch
from matplotlib.figure import Figure

from d4lens.classes import CLASSES
from d4lens.files import atomic_path
from d4lens.macrofit import fit, preset_model
from d4lens.macrofit.significance import significance
from d4lens.simulate import PRESETS, draw, render, substructure_convergence

SEED, FIRST = 20, 0  # index % 3 is the class


def main() -> None:
    preset = PRESETS["deeplense"]
    truth = draw(preset, SEED, range(FIRST, FIRST + len(CLASSES)))
    counts = torch.as_tensor(render(truth, preset)).float()
    model = preset_model("deeplense")
    result = fit(counts, model)
    found = significance(counts, result.parameters, model)
    true = substructure_convergence(truth, preset.observation)
    columns = {
        "photon counts\n(square root)": (counts.sqrt(), "magma", None),
        "residual of the\nsmooth lens [σ]": (result.residual, "RdBu_r", 6),
        "significance of\none more mass [σ]": (found, "PuOr_r", 20),
        "true substructure\n(convergence)": (true, "viridis", None),
    }
    half = preset.observation.half_width
    figure = Figure(figsize=(11, 8.1), layout="constrained")
    axes = figure.subplots(len(CLASSES), len(columns), sharex=True, sharey=True)
    for row, name in enumerate(CLASSES):
        axes[row, 0].set_ylabel(f"{name}\n$\\chi^2$/px {result.chi2[row]:.2f}", fontsize=12)
        for axis, (title, (maps, colours, limit)) in zip(axes[row], columns.items(), strict=True):
            low = {"vmin": -limit, "vmax": limit} if limit else {"vmin": 0} if colours == "viridis" else {}
            image = maps[row].numpy()
            axis.imshow(image, origin="lower", extent=(-half, half, -half, half), cmap=colours, **low)
            axis.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[-2, 0, 2], yticks=[-2, 0, 2])
            if row == 0:
                axis.set_title(title, fontsize=11)
            if row == len(CLASSES) - 1:
                axis.set_xlabel("arcsec")
    with atomic_path("docs/lenses.png") as temporary:
        figure.savefig(temporary, dpi=80)


if __name__ == "__main__":
    main()
