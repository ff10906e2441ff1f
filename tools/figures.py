"""The documents' pictures: docs/lens.png, one simulated vortex as `d4lens explain` draws it; docs/lenses.png, one simulated
image of each class and what the fit makes of it; docs/learning_curve.png, macro AUC against training images from metrics/archive/NAME/results.csv of CURVES;
docs/limit.svg, detection rate against the substructure's significance from plots/quick/studies/sensitivity/limit.csv."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure

from d4lens.classes import CLASSES
from d4lens.data import images
from d4lens.files import atomic_path
from d4lens.inference.explain import Explanation, explain_source
from d4lens.inference.picture import draw_explanation
from d4lens.inference.pipeline import load_classifier
from d4lens.macrofit import fit_smooth_lens, preset_model
from d4lens.macrofit.significance import significance_maps
from d4lens.results.plots import drawing
from d4lens.simulator import PRESETS, DataSet, draw, render, substructure_convergence, write_archive
from d4lens.studies.sensitivity import SEARCHES

LENS_SEED = 1  # as in README.md, whose commands draw this lens
SEED, FIRST = 20, 0  # index % 3 is the class
CURVES = ("learning_curve", "full_75px", "image_only", "image_only_d4")  # of metrics/archive, until full_75px is rerun
ARMS = {
    "d4lenspinn": "D4LensPINN (residual + significance)",
    "d4cnn_residual": "D4-equivariant CNN on the residual",
    "resnet18_residual": "ResNet18 on image + residual",
    "d4cnn": "D4-equivariant CNN on the image, 30 epochs",
    "resnet18": "ResNet18 on the image",
    "resnet18_long": "ResNet18 on the image, 30 epochs",
}
LIMIT = "plots/quick/studies/sensitivity/limit.csv"


def learning_curve() -> None:
    table = pd.concat((pd.read_csv(f"metrics/archive/{name}/results.csv") for name in CURVES), ignore_index=True)
    table = table[table["tta"]]
    table = table.assign(arm=table["arm"].map(lambda name: re.sub(r"_\d+$", "", name)))
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for arm, label in ARMS.items():
        points = table[table["arm"] == arm].groupby("n_train")
        mean = points["auc_macro"].mean()  # over seeds, where there are several
        ends = mean - points["auc_macro_low"].min(), points["auc_macro_high"].max() - mean
        axis.errorbar(mean.index, mean, ends, marker="o" if len(mean) > 1 else "s", capsize=3, label=label)
    axis.set_xscale("log")
    axis.set_yscale("logit")
    ticks = [0.5, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9998]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks([], minor=True)
    axis.set(xlabel="training images", ylabel="macro AUC on the test split (TTA), logit scale")
    axis.grid(alpha=0.3)
    axis.legend(loc=(0.3, 0.12), fontsize="small")
    sizes = sorted(table["n_train"].unique())
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.set_xticks([], minor=True)
    with atomic_path("docs/learning_curve.png") as temporary:
        figure.savefig(temporary, dpi=110)


def limit() -> None:
    table = pd.read_csv(LIMIT)
    table = table[table["images_of"] == "one subhalo"]  # the test split's substructure is all far above the noise
    rate = yaml.safe_load(Path("params.yaml").read_text())["sensitivity"]["false_positive_rate"]
    arms = list(table["arm"].unique())
    with drawing("docs/limit.svg", (5.2, 4.2)) as figure:
        axis = figure.subplots()
        for arm, rows in table.groupby("arm", sort=False):
            colour, ideal = f"C{arms.index(str(arm))}", arm == "ideal"
            style = {"color": colour, "marker": "."}
            if arm in ("ideal", SEARCHES):
                style = {"color": "black", "linestyle": "--" if ideal else "-."}
            axis.fill_between(rows["sigma"], rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)
            axis.plot(rows["sigma"], rows["rate"], label="ideal: knows place and shape" if ideal else arm, **style)
        axis.axhline(rate, color="0.7", linewidth=0.8, linestyle=":")
        axis.set_xscale("symlog", linthresh=1)
        ticks = [0, 1, 2, 5, 10, 20, 50, 100]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set(title="one subhalo", xlabel="significance of the true substructure", ylim=(-0.02, 1.02))
        axis.set_ylabel(f"share detected at {rate:.0%} false alarms")
        axis.legend(fontsize="small")


def explained_lens() -> Explanation:
    """Explain the vortex among the three lenses that README.md simulates."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "three.zip"
        write_archive(archive, DataSet(PRESETS["deeplense"], seed=LENS_SEED, n_train=len(CLASSES), n_val=0))
        vortex = next(source for source in images.find([archive]) if "/vort/" in source.name)
        return replace(explain_source(vortex, load_classifier()), name="a simulated lens")


def lens() -> None:
    draw_explanation(explained_lens(), "docs/lens.png", "talk")


def lenses() -> None:
    preset = PRESETS["deeplense"]
    truth = draw(preset, SEED, range(FIRST, FIRST + len(CLASSES)))
    counts = torch.as_tensor(render(truth, preset)).float()
    model = preset_model("deeplense")
    result = fit_smooth_lens(counts, model)
    found = significance_maps(counts, result.parameters, model)
    true = substructure_convergence(truth, preset.observation)
    columns = {  # maps, colours, and the ends of the scale that the three rows share
        "photon counts\n(square root)": (counts.sqrt(), "magma", 0, counts.sqrt().max()),
        "residual of the\nsmooth lens [σ]": (result.residual, "RdBu_r", -6, 6),
        "significance of\none more mass [σ]": (found, "PuOr_r", -found.abs().max(), found.abs().max()),
        "true substructure\n(convergence)": (true, "viridis", 0, true.max()),
    }
    half = preset.observation.half_width
    figure = Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots(len(CLASSES), len(columns), sharex=True, sharey=True)
    for row, name in enumerate(CLASSES):
        axes[row, 0].set_ylabel(f"{name}\n$\\chi^2$/px {result.chi2[row]:.2f}", fontsize=12)
        for column, (title, (maps, colours, low, high)) in enumerate(columns.items()):
            axis, ends = axes[row, column], {"vmin": float(low), "vmax": float(high)}
            drawn = axis.imshow(
                maps[row].numpy(), origin="lower", extent=(-half, half, -half, half), cmap=colours, **ends
            )
            axis.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[-2, 0, 2], yticks=[-2, 0, 2])
            if row == 0:
                axis.set_title(title, fontsize=11)
            if row == len(CLASSES) - 1:
                axis.set_xlabel("arcsec")
                figure.colorbar(drawn, ax=axes[:, column], location="bottom", shrink=0.85, pad=0.01)
    with atomic_path("docs/lenses.png") as temporary:
        figure.savefig(temporary, dpi=80)


def main() -> None:
    lens()
    lenses()
    learning_curve()
    limit()


if __name__ == "__main__":
    main()
