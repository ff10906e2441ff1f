"""`d4lens detect` on simulated lenses: are its probabilities, places and masses honest, and does it say what it cannot know?

    python benchmarks/detect.py [--smooth 2000] [--single 400] [--others 20] [--survey 100] [--scan 13] [--out FILE.json]

- smooth: images of `deeplense` without substructure. Their p_false must be uniform.
- single: images of `deeplense` with one subhalo. Those above 8 sigma have pulls: (found - true) / standard deviation.
- others: smooth lenses of another shape, with a clumpy source or with the galaxy's light. What is listed there is false.
- survey: images of `survey` without substructure under the marginal fit, with the PSF that the preset says is known.
- scan: one lens with a subhalo, against a grid of fits with lenstronomy: at each place lens, source and a point mass there.

One thread: the seconds are those of a core.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from macrofit import show
from scipy.optimize import least_squares
from scipy.stats import kstest
from simulate import Peer

from d4lens import detect
from d4lens.files import write_json
from d4lens.inference.mass_search import Wanted
from d4lens.macrofit import preset_model
from d4lens.results.metrics import wilson
from d4lens.simulator import Truth, draw, preset, render
from d4lens.studies import physical_limit

SEED = 9001
RATE = Wanted().p_false
OTHERS = {
    "axis ratio 0.8": {"lens_q": 0.8},
    "Sersic index 1": {"sersic_n": 1.0},
    "three clumps": {"n_clumps": 3.0},
    "eight clumps": {"n_clumps": 8.0},
    "second component": {"second_component": 1.0},
    "lens light, as bright as the arcs": {"light_peak": 1.0},
    "lens light, ten times as bright": {"light_peak": 10.0},
}
"""Of smooth lenses, by what they have beside a lens and a source as `deeplense` has them."""


def rows_of(counts: np.ndarray, **how: object) -> pd.DataFrame:
    """Table of images (n, 150, 150), and how long one took on the processor."""
    begin = time.process_time()
    table = detect(counts, **how).to_pandas()
    return table.assign(seconds=(time.process_time() - begin) / len(counts))


def share(found: np.ndarray) -> dict[str, object]:
    low, high = wilson(int(found.sum()), len(found))
    return {"share": float(np.mean(found)), "low": low, "high": high, "images": len(found)}


def uniform(p_false: np.ndarray) -> dict[str, object]:
    test = kstest(p_false, "uniform")
    shares = {f"below_{p:g}": share(p_false < p) for p in (0.01, 0.05, 0.1)}
    return {"images": len(p_false), "statistic": float(test.statistic), "p_value": float(test.pvalue), **shares}


def smooth(n: int) -> dict[str, object]:
    """Calibration of p_false: every image's own, whether it is a candidate or not."""
    kind, found = preset("deeplense"), []
    for first in range(0, n, 50):
        counts = render(draw(kind, SEED, range(first, min(first + 50, n)), "none"), kind)
        found.append(rows_of(counts.numpy(), model="specialist", force=True).drop_duplicates("path"))
    table = pd.concat(found)
    return {
        **uniform(table["p_false"].to_numpy()),
        "withheld": share((rows := table["flag"].str.contains("preset|masses|converged|bound")).to_numpy()),
        "flags": sorted(set(table["flag"][rows])),
        "seconds": float(table["seconds"].mean()),
    }


def subhalos(n: int, seed: int) -> Truth:
    """One subhalo a lens, 1e9 to 2e10 Msun, half to one and a half Einstein radii out."""
    draws = np.random.default_rng(seed).random((3, n))
    return physical_limit.one_subhalo(
        preset("deeplense"), seed, 10 ** (9 + 1.3 * draws[0]), 0.5 + draws[1], 2 * np.pi * draws[2]
    )


def single(n: int) -> dict[str, object]:
    """Places, masses and pulls of subhalos above 8 sigma, and what became of those images' answers."""
    kind, truth, rows = preset("deeplense"), subhalos(n, SEED + 1), []
    for first in range(0, n, 50):
        part = truth.rows(np.arange(first, min(first + 50, n)))
        counts = render(part, kind)
        table = rows_of(counts.numpy(), model="specialist")
        gain = physical_limit.gain(physical_limit.mean_counts(part, kind, 1), preset_model("deeplense"))
        for i, (_, found) in enumerate(table.groupby("path", sort=False)):
            true, main = part.subhalos.iloc[i], part.images["theta_E"].iloc[i]
            rows.append(found.iloc[0].to_dict() | {
                "sigma": float(gain[i]) ** 0.5, "true_x": true.x, "true_y": true.y, "true_mass": (true.theta_E / main) ** 2,
                "true_theta_E": true.theta_E, "listed": int(found["rank"].max()),
            })  # fmt: skip
    table = pd.DataFrame(rows)
    table = table[table["sigma"] > 8]
    listed = table[table["listed"] > 0]
    pulls = {
        name: (listed[name] - listed[f"true_{name}"]) / listed[f"sigma_{name}"]
        for name in ("x", "y", "theta_E", "mass")
    }
    off = np.hypot(listed["x"] - listed["true_x"], listed["y"] - listed["true_y"])
    return {
        "above_8_sigma": len(table),
        "listed": share((table["listed"] > 0).to_numpy()),
        "withheld": share(table["rank"].eq(0).to_numpy() & table["p_false"].isna().to_numpy()),
        "more_than_one": share((table["listed"] > 1).to_numpy()),
        "median_place_error_arcsec": float(off.median()),
        "median_mass_error": float((listed["mass"] / listed["true_mass"] - 1).abs().median()),
        "pull_width": {name: float(pull.std()) for name, pull in pulls.items()},
        "pull_width_by_quartiles": {
            name: float((pull.quantile(0.75) - pull.quantile(0.25)) / 1.349) for name, pull in pulls.items()
        },
        "largest_pull": {name: float(pull.abs().max()) for name, pull in pulls.items()},
    }


def other(n: int, model: str) -> dict[str, object]:
    """Share of foreign smooth lenses with a mass listed, and the flags that withhold an answer."""
    priors, grid = preset("deeplense").priors, preset("deeplense").observation
    plain: dict[str, object] = {
        name: p.low if p.kind == "fixed" else [p.low, p.high]
        for name, p in priors.items()
        if p.kind in ("fixed", "uniform")
    }
    plain |= {"n_clumps": 0.0, "second_component": 0.0, "light_peak": 0.0, "psf_error": 0.0, "snr": 60.0, "lens_x": 0.0}
    plain |= {"lens_y": 0.0, "image_sky": grid.sky, "image_psf_sigma": grid.psf_sigma}
    known = {"pixel_scale": grid.pixel_scale, "psf": grid.psf_sigma, "gain": 1.0, "sky": grid.sky}
    result: dict[str, object] = {}
    for name, over in OTHERS.items():
        kind = preset("survey", plain | over)
        counts = render(draw(kind, SEED + 2, range(n), "none"), kind).numpy()
        table = rows_of(counts, model=model, **known)
        first = table.drop_duplicates("path")
        flags = first["flag"].value_counts().to_dict()
        result[name] = {
            "false": share(first["rank"].to_numpy() > 0),
            "withheld": share(first["p_false"].isna().to_numpy()),
            "flags": {k or "none": int(v) for k, v in flags.items()},
            "seconds": float(first["seconds"].iloc[0]),
        }
    return result


def survey(n: int) -> dict[str, object]:
    """False alarms of the marginal fit, whose light, clumps and shapes the preset draws widely."""
    kind, rows = preset("survey"), []
    for i in range(n):
        truth = draw(kind, SEED + 3, range(i, i + 1), "none")
        row, counts = truth.images.iloc[0], render(truth, kind)[0].numpy()
        shines = bool(row["light_peak"])
        known = {"pixel_scale": 0.05, "psf": row["image_psf_sigma"] * (1 + row["psf_error"]), "gain": 1.0}
        known |= {"sky": row["image_sky"]} | ({"einstein_radius": row["theta_E"]} if shines else {})
        table = rows_of(counts[None], model="marginal", **known)
        rows.append(table.iloc[0].to_dict() | {"listed": int(table["rank"].max()), "light": shines, "snr": row["snr"]})
    table = pd.DataFrame(rows)
    given = table[table["p_false"].notna()]
    first = given["p_false"].to_numpy()
    return {
        "images": n,
        "withheld": share(table["p_false"].isna().to_numpy()),
        "false_alarms": share((given["listed"] > 0).to_numpy()),
        "uniform": uniform(first),
        "flags": {k or "none": int(v) for k, v in table["flag"].value_counts().items()},
        "seconds": {"median": float(table["seconds"].median()), "largest": float(table["seconds"].max())},
    }


def scan(side: int) -> dict[str, object]:
    """Seconds of one core: `detect` with its map of what could have been seen, and a grid of side x side fits.

    The peer fits as fast as it can: from the true lens, by least squares with difference quotients, source profile and
    sky known, one start a place. Its map says what was found; what could have been seen would cost it as much again.
    """
    kind = preset("deeplense")
    truth = physical_limit.one_subhalo(kind, SEED + 4, np.array([5e9]), np.array([1.0]), np.array([0.8]))
    counts = render(truth, kind)[0].numpy()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        found = detect(counts, sensitivity=Path(folder) / "map.fits").to_pandas().iloc[0]
        ours = time.process_time() - begin
    peer = Peer(truth, 0, kind)
    lens, shear, mass = peer.lens
    source = peer.source[0]
    free = [(lens, "theta_E"), (shear, "gamma1"), (shear, "gamma2")]
    free += [(source, name) for name in ("center_x", "center_y", "e1", "e2")]
    true, sigma = [part[name] for part, name in free], np.sqrt(np.maximum(counts, 1.0))

    def misfit(values: np.ndarray) -> np.ndarray:
        for (part, name), value in zip(free, values):
            part[name] = value
        mass["theta_E"] = np.sqrt(values[len(free)]) if len(values) > len(free) else 0.0
        return ((counts - peer.mean()) / sigma).ravel()

    reach = 1.5 * lens["theta_E"]
    begin = time.process_time()
    smooth = least_squares(misfit, true)
    gains, places = [], [(x, y) for y in np.linspace(-reach, reach, side) for x in np.linspace(-reach, reach, side)]
    for x, y in places:
        mass |= {"center_x": x, "center_y": y}
        both = least_squares(misfit, [*smooth.x, 1e-3], bounds=([-np.inf] * len(free) + [0.0], np.inf), x_scale="jac")
        gains.append(2 * (smooth.cost - both.cost))
    theirs, best = time.process_time() - begin, int(np.argmax(gains))
    return {
        "seconds": {"ours": ours, "lenstronomy": theirs},
        "times_faster": theirs / ours,
        "places": {"ours": "every pixel", "lenstronomy": len(places)},
        "gain_in_chi2": {"ours": float(found["delta_chi2"]), "lenstronomy": float(gains[best])},
        "off_arcsec": {
            name: float(np.hypot(x - truth.subhalos["x"].iloc[0], y - truth.subhalos["y"].iloc[0]))
            for name, (x, y) in {"ours": (found["x"], found["y"]), "lenstronomy": places[best]}.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smooth", type=int, default=2000, help="images without substructure; 0: none")
    parser.add_argument("--single", type=int, default=400, help="images with one subhalo; 0: none")
    parser.add_argument("--others", type=int, default=20, help="images of each other kind; 0: none")
    parser.add_argument("--survey", type=int, default=100, help="images of survey; 0: none")
    parser.add_argument("--scan", type=int, default=13, help="places a side of the peer's grid; 0: none")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {}
    if arguments.smooth:
        result["smooth"] = smooth(arguments.smooth)
    if arguments.single:
        result["single"] = single(arguments.single)
    if arguments.others:
        for model in ("specialist", "auto"):
            result[f"others_{model}"] = other(arguments.others, model)
    if arguments.survey:
        result["survey"] = survey(arguments.survey)
    if arguments.scan:
        result["scan"] = scan(arguments.scan)
    show(result)
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
