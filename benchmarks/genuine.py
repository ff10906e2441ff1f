"""Figure and table: simulated images' statistics against those of genuine ones.

    python benchmarks/genuine.py --samples FOLDER [--images 600] [--out genuine.png]

FOLDER holds genuine images as {no,sphere,vort}/N.npy; they are measured here, and nothing is tuned on them.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from image_statistics import LEVELS, RADII, Statistics, compare, statistics

from d4lens import simulator
from d4lens.classes import CLASSES
from d4lens.data.images import read_image, recover_counts

GENUINE, SIMULATED = "#d1495b", "#30638e"


def measure(folder: Path, n_images: int) -> tuple[Statistics, Statistics]:
    """Statistics of the genuine images under `folder` and of as many simulated ones as asked."""
    preset = simulator.preset("deeplense")
    sky, scale = preset.observation.sky, preset.observation.pixel_scale
    paths = [path for label in CLASSES for path in sorted((folder / label).glob("*.npy"))]
    genuine = statistics(np.stack([recover_counts(read_image(path), sky).k for path in paths]), scale, sky)
    simulated = [
        simulator.render(simulator.draw(preset, 2026, range(start, min(start + 60, n_images))), preset).numpy()
        for start in range(0, n_images, 60)
    ]
    return genuine, statistics(np.concatenate(simulated), scale, sky)


def draw(genuine: Statistics, simulated: Statistics, path: Path) -> None:
    """Distributions as cumulative curves, profile and noise as bands of 16 to 84 %."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    singles = {
        "peak": "brightest pixel (counts above the minimum)",
        "sky_mean": "sky mean (counts above the minimum)",
        "sky_variance": "sky variance (counts²)",
        "ring_radius": "ring radius (arcsec)",
    }
    for axis, (name, label) in zip(axes.flat, singles.items()):
        for values, colour, who in ((simulated, SIMULATED, "simulated"), (genuine, GENUINE, "genuine")):
            x = np.sort(getattr(values, name))
            axis.step(x, (np.arange(len(x)) + 1) / len(x), where="post", color=colour, label=f"{who} ({len(x)})")
        axis.set(xlabel=label, ylabel="fraction of images below", ylim=(0, 1))
    middles = RADII + (RADII[1] - RADII[0]) / 2
    edges = np.array([10.0, *LEVELS[:-1], 1000.0])
    for axis, x, name, label, ylabel in (
        (axes[1, 1], middles, "profile", "radius (arcsec)", "azimuthal mean less sky, normalised"),
        (axes[1, 2], np.sqrt(edges[1:] * edges[:-1]), "noise", "mean count per pixel", "noise variance / mean count"),
    ):
        low, middle, high = np.nanpercentile(getattr(simulated, name), (16, 50, 84), axis=0)
        axis.fill_between(x, low, high, color=SIMULATED, alpha=0.25, lw=0, label="simulated, 16–84 %")
        axis.plot(x, middle, color=SIMULATED)
        axis.plot(x, getattr(genuine, name).T, color=GENUINE, lw=0.7, alpha=0.7)
        axis.set(xlabel=label, ylabel=ylabel)
    axes[1, 2].set_xscale("log")
    axes[1, 2].set_xticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1000"])
    axes[1, 2].minorticks_off()
    axes[0, 0].legend(frameon=False)
    axes[1, 1].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, required=True, help="folder of genuine images")
    parser.add_argument("--images", type=int, default=600, help="simulated images")
    parser.add_argument("--out", type=Path, default=Path("genuine.png"), help="the figure")
    arguments = parser.parse_args()
    genuine, simulated = measure(arguments.samples, arguments.images)
    draw(genuine, simulated, arguments.out)
    print(f"{'statistic':16s} {'genuine':>20s} {'simulated':>20s} {'z':>6s} {'KS p':>7s}")
    for name, row in compare(genuine, simulated).items():
        sides = (f"{row[k]:9.4g} ± {row[k + '_spread']:8.3g}" for k in ("genuine", "simulated"))
        print(f"{name:16s} {' '.join(sides)} {row['z']:6.2f} {row['p']:7.3f}")


if __name__ == "__main__":
    main()
