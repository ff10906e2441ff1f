"""The README's pictures: docs/lenses.png, one simulated image of each class and what the fit makes of it, and
docs/learning_curve.png, macro AUC against training images from metrics/{learning_curve,full_75px}/results.csv."""

import re

import pandas as pd
import torch
from matplotlib.figure import Figure

from d4lens.classes import CLASSES
from d4lens.files import atomic_path
from d4lens.macrofit import fit, preset_model
from d4lens.macrofit.significance import significance
from d4lens.simulate import PRESETS, draw, render, substructure_convergence

SEED, FIRST = 20, 0  # index % 3 is the class
CURVES = ("learning_curve", "full_75px")  # profiles, the last with the largest training set
ARMS = {
    "d4lenspinn": "D4LensPINN (residual + significance)",
    "d4cnn_residual": "D4-equivariant CNN on the residual",
    "resnet18_residual": "ResNet18 on image + residual",
    "resnet18": "ResNet18 on the image",
}


def learning_curve() -> None:
    table = pd.concat((pd.read_csv(f"metrics/{name}/results.csv") for name in CURVES), ignore_index=True)
    table = table[table["tta"]]
    table = table.assign(arm=table["model"].map(lambda name: re.sub(r"_\d+$", "", name)))
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for arm, label in ARMS.items():
        points = table[table["arm"] == arm].sort_values("n_train")
        ends = points["auc_macro"] - points["auc_macro_low"], points["auc_macro_high"] - points["auc_macro"]
        axis.errorbar(points["n_train"], points["auc_macro"], ends, marker="o", capsize=3, label=label)
    axis.set_xscale("log")
    axis.set_yscale("logit")
    ticks = [0.5, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9998]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks([], minor=True)
    axis.set(xlabel="training images", ylabel="macro AUC on the test split (TTA)")
    axis.grid(alpha=0.3)
    axis.legend(loc=(0.3, 0.12), fontsize="small")
    sizes = sorted(table["n_train"].unique())
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.set_xticks([], minor=True)
    with atomic_path("docs/learning_curve.png") as temporary:
        figure.savefig(temporary, dpi=110)


def lenses() -> None:
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
    lenses()
    learning_curve()
