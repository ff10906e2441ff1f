"""The smooth-lens fit: does it find the optimum, are its errors honest, how fast is it, and against scipy.

    python benchmarks/macrofit.py [--images 3000] [--no 4000] [--scipy 12] [--marginal 60] [--autolens PYTHON]
        [--device cpu] [--out FILE.json]

Speed is measured on `--speed` images with all cores, wall clock and, since other load on the machine slows that down,
processor time too. The peer is scipy.optimize.least_squares on the deviance residuals of the same model and images from
the same start, with the analytic derivatives and with difference quotients. The marginal fit's peer is PyAutoLens, in an
environment of its own whose interpreter `--autolens` names, on one lens.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from d4lens import simulator
from d4lens.classes import CLASSES
from d4lens.files import write_json
from d4lens.lensing import ellipticity
from d4lens.macrofit import FIT_COLUMNS, SmoothLensModel, fit_marginal, fit_smooth_lens, open_model, preset_model
from d4lens.macrofit.start import moments, starting_point
from d4lens.observation import bin_pixels

SAME = 0.003  # chi-square a pixel
PIECE = 500
SEED = 2026


def simulated(n_images: int, substructure: str = "own", first: int = 0) -> tuple[Tensor, Tensor, np.ndarray]:
    """Counts (n, 150, 150), true FIT_COLUMNS and classes."""
    preset = simulator.preset("deeplense")
    truth = simulator.draw(preset, SEED, range(first, first + n_images), substructure)
    columns = torch.tensor(truth.images[list(FIT_COLUMNS)].to_numpy(float))
    return simulator.render(truth, preset).float(), columns, truth.images["class"].to_numpy()


def optimum(n_images: int, device: str) -> dict[str, object]:
    """Share of images whose fit from moments ends where the fit from the truth does, by binning and class."""
    found: dict[int, list[Tensor]] = {1: [], 2: []}
    labels = []
    for first in range(0, n_images, PIECE):
        counts, truth, classes = simulated(min(PIECE, n_images - first), first=first)
        labels.append(classes)
        for factor, rows in found.items():
            k, model = bin_pixels(counts, factor), preset_model("deeplense", binning=factor, device=device)
            ours, known = fit_smooth_lens(k, model), fit_smooth_lens(k, model, initial=truth, fine_iterations=40)
            rows.append(torch.stack([ours.chi2, known.chi2, ours.converged.double()]))
    classes = np.concatenate(labels)
    result: dict[str, object] = {"images": n_images}
    for factor, rows in found.items():
        chi2, known, converged = torch.cat(rows, 1)
        result[f"binning_{factor}"] = {
            "not_above_truths_optimum": float((chi2 - known <= SAME).double().mean()),
            "within_of_truths_optimum": float(((chi2 - known).abs() <= SAME).double().mean()),
            "converged": float(converged.mean()),
            "mean_chi2": {c: float(chi2[torch.from_numpy(classes == c)].mean()) for c in CLASSES},
        }
    return result


def honesty(n_images: int, device: str) -> dict[str, object]:
    """Chi-square and pulls (fitted - true)/sigma of images without substructure."""
    pulls: dict[int, list[Tensor]] = {1: [], 2: []}
    chi2: dict[int, list[Tensor]] = {1: [], 2: []}
    for first in range(0, n_images, PIECE):
        counts, truth, _ = simulated(min(PIECE, n_images - first), "none", first)
        for factor in pulls:
            done = fit_smooth_lens(bin_pixels(counts, factor), preset_model("deeplense", binning=factor, device=device))
            pulls[factor].append((done.parameters - truth) / done.sigma)
            chi2[factor].append(done.chi2)
    result: dict[str, object] = {"images": n_images, "error_of_a_mean": n_images**-0.5}
    for factor, rows in pulls.items():
        pull = torch.cat(rows)
        result[f"binning_{factor}"] = {
            "mean_chi2": float(torch.cat(chi2[factor]).mean()),
            "pull_mean": dict(zip(FIT_COLUMNS, pull.mean(0).tolist())),
            "pull_width": dict(zip(FIT_COLUMNS, pull.std(0).tolist())),
        }
    return result


def speed(n_images: int, device: str) -> dict[str, object]:
    """Images a second of the whole fit, the three classes in turn."""
    counts, _, _ = simulated(n_images)
    size = 64 if device == "cpu" else 1024
    result: dict[str, object] = {"images": n_images, "threads": torch.get_num_threads(), "device": device_name(device)}
    for factor in (1, 2):
        k, model = bin_pixels(counts, factor), preset_model("deeplense", binning=factor, device=device)
        fit_smooth_lens(k[: 2 * size], model, batch_size=size)
        wall, busy = time.perf_counter(), time.process_time()
        fit_smooth_lens(k, model, batch_size=size)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        result[f"binning_{factor}"] = {
            "images_per_second": n_images / wall,
            "processor_ms_per_image": busy / n_images * 1e3,
            "load_average": os.getloadavg()[0],
        }
    return result


def elliptical() -> simulator.Preset:
    """Lenses that the preset of the specialist's fit does not know."""
    return simulator.preset("deeplense", {"lens_q": 0.7, "lens_phi": 0.5, "sersic_n": 1.0})


def marginal(n_images: int) -> dict[str, object]:
    """Images a second of the marginal fit at 75 pixels, on smooth lenses that the preset does not know, and its radii."""
    kind = elliptical()
    truth = simulator.draw(kind, SEED, range(n_images), "none")
    counts = bin_pixels(simulator.render(truth, kind), 2).float()
    model = open_model(kind.observation, 2)
    fit_marginal(counts[:2], model)
    wall, busy = time.perf_counter(), time.process_time()
    done = fit_marginal(counts, model)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    radius = torch.tensor(truth.images["theta_E"].to_numpy(float))
    pull = (done.columns[:, 0] - radius) / done.sigma[:, 0]
    return {
        "images": n_images,
        "images_per_second": n_images / wall,
        "processor_ms_per_image": busy / n_images * 1e3,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "converged": float(done.converged.double().mean()),
        "mean_chi2": float(done.chi2.mean()),
        "theta_E_pull_width": float(pull.std()),
        "theta_E_median_error": float((done.columns[:, 0] / radius - 1).abs().median()),
    }


def against_autolens(python: str) -> dict[str, object]:
    """Processor time of one core on one lens: our whole fit, which starts from nothing, and the peer's search near the truth."""
    kind = elliptical()
    truth = simulator.draw(kind, SEED, range(1), "none")
    row, counts = truth.images.iloc[0], bin_pixels(simulator.render(truth, kind), 2).float()
    model = open_model(kind.observation, 2)
    fit_marginal(counts, model, threads=1)
    busy = time.process_time()
    done = fit_marginal(counts, model, threads=1)
    busy = time.process_time() - busy
    e1, e2 = map(float, ellipticity(row["lens_q"], row["lens_phi"]))
    lens = {name: row[name] for name in ("theta_E", "gamma1", "gamma2")} | {"e1": e1, "e2": e2}
    grid = {"pixel_scale": 2 * kind.observation.pixel_scale, "psf_sigma": kind.observation.psf_sigma}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/lens.npz", counts=counts[0].double().numpy(), sky=4 * kind.observation.sky, **lens, **grid)
        command = [python, str(Path(__file__).with_name("peer_autolens.py").resolve()), f"{folder}/lens.npz"]
        one_core = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYAUTO_SKIP_WORKSPACE_VERSION_CHECK": "1"}
        said = subprocess.run(command, cwd=folder, env=one_core, capture_output=True, text=True, check=True).stdout
    peer = json.loads(said.splitlines()[-1])
    ours = {"seconds": busy, "chi2": float(done.chi2), "theta_E_error": float(done.columns[0, 0]) / row["theta_E"] - 1}
    return {
        "ours": ours,
        "autolens": peer,
        "our_fit_in_its_trials": busy / peer["seconds_a_trial"],
        "times_faster": peer["seconds"] / busy,
    }


def against_scipy(n_images: int) -> dict[str, object]:
    """Processor time and chi-square of one core's fits, ours and scipy's, native images from the start by moments."""
    counts, _, _ = simulated(n_images)
    model = preset_model("deeplense")
    double = preset_model("deeplense", dtype=torch.float64)
    fit_smooth_lens(counts[:1], model, threads=1)
    times = {"ours": [], "scipy_analytic": [], "scipy_differences": []}
    values: dict[str, list[float]] = {name: [] for name in times}
    begin = starting_point(moments(counts, model), model, 0)
    for image, at in zip(counts, begin):
        busy = time.process_time()
        done = fit_smooth_lens(image[None], model, threads=1)
        times["ours"].append(time.process_time() - busy)
        values["ours"].append(float(done.chi2))
        for name, analytic in (("scipy_analytic", True), ("scipy_differences", False)):
            busy = time.process_time()
            values[name].append(scipy_chi2(image.double(), double, at, analytic))
            times[name].append(time.process_time() - busy)
    busy = time.process_time()
    fit_smooth_lens(counts, model, threads=1)
    batched = (time.process_time() - busy) / n_images
    ms = {name: float(np.mean(seconds)) * 1e3 for name, seconds in times.items()}
    best = np.minimum.reduce([np.array(column) for column in values.values()])
    return {
        "images": n_images,
        "processor_ms_per_image": {**ms, "ours_batched": batched * 1e3},
        "times_faster_batched": {name: ms[name] / batched / 1e3 for name in ("scipy_analytic", "scipy_differences")},
        "reached_the_best_of_the_three": {
            name: float(np.mean(np.array(column) <= best + SAME)) for name, column in values.items()
        },
    }


def scipy_chi2(k: Tensor, model: SmoothLensModel, at: Tensor, analytic: bool) -> float:
    """Pearson's chi-square a pixel at the optimum that least_squares finds in its default tolerances."""

    def parts(p: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        stack = model.image_and_jacobian(torch.from_numpy(p)[None])[0]
        m = stack[0]
        # d sign(k-m) sqrt(D) / dm = -(k-m)/(m sqrt(D)), whose limit where k = m is -1/sqrt(m).
        root = (2 * (m - k + torch.xlogy(k, k / m))).clamp_min(0).sqrt()
        weight = torch.where(root > 1e-6, (k - m).abs() / (m * root.clamp_min(1e-6)), m.rsqrt())
        return (k - m).sign() * root, -weight * stack[1:], m

    def residual(p: np.ndarray) -> np.ndarray:
        if analytic:
            return parts(p)[0].flatten().numpy()
        m = model.image(torch.from_numpy(p)[None])[0]
        return ((k - m).sign() * (2 * (m - k + torch.xlogy(k, k / m))).clamp_min(0).sqrt()).flatten().numpy()

    def derivatives(p: np.ndarray) -> np.ndarray:
        return parts(p)[1].flatten(1).T.numpy()

    walls = [[getattr(model.priors[name], end) for name in model.free] for end in ("lower", "upper")]
    found = least_squares(residual, at.numpy(), derivatives if analytic else "2-point", bounds=walls, x_scale="jac")
    m = model.image(torch.from_numpy(found.x)[None])[0]
    return float(((k - m) ** 2 / m).mean())


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=3000, help="images in the search for the optimum; 0 leaves it out"
    )
    parser.add_argument("--no", type=int, default=4000, help="images without substructure for the pulls; 0: none")
    parser.add_argument("--speed", type=int, default=600, help="images in the measurement of speed; 0: none")
    parser.add_argument("--scipy", type=int, default=12, help="images fitted by scipy too; 0: none")
    parser.add_argument("--marginal", type=int, default=60, help="images of the marginal fit; 0: none")
    parser.add_argument("--autolens", metavar="PYTHON", help="interpreter with autolens; fits one lens with it too")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    result: dict[str, object] = {}
    if arguments.speed:
        result["speed"] = speed(arguments.speed, arguments.device)
    if arguments.marginal:
        result["marginal"] = marginal(arguments.marginal)
    if arguments.autolens:
        result["against_autolens"] = against_autolens(arguments.autolens)
    if arguments.scipy:
        result["against_scipy"] = against_scipy(arguments.scipy)
    if arguments.images:
        result["optimum"] = optimum(arguments.images, arguments.device)
    if arguments.no:
        result["honesty"] = honesty(arguments.no, arguments.device)
    show(result)
    if arguments.out:
        write_json(arguments.out, result)


def show(value: dict[str, object], indent: str = "") -> None:
    """Print nested results, one figure a line."""
    for key, item in value.items():
        if isinstance(item, dict):
            print(f"{indent}{key}:")
            show(item, indent + "  ")
        else:
            print(f"{indent}{key}: {item:.4g}" if isinstance(item, float) else f"{indent}{key}: {item}")


if __name__ == "__main__":
    main()
