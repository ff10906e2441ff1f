"""Speed of the simulator: against lenstronomy on one core, to an archive, against the core's arithmetic.

    python benchmarks/simulate.py [--images 30] [--out FILE.json]

The peer makes the same images (checked here, pixel by pixel) from the same truth: SIS + SHEAR + 25 POINT_MASS or the
rod as 100 of them, SERSIC_ELLIPSE, Gaussian PSF, sampled at pixel centres. Both run interleaved in this process, and
the best of several rounds counts, so that other load on the machine falls on both.
"""

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel

from d4lens import simulator
from d4lens.classes import CLASSES
from d4lens.files import write_json

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
TRUNCATE = 6  # standard deviations at which both cut the PSF
ROD_POINTS = 100
BLOCK = 30  # images of one class rendered by one call of ours; lenstronomy takes them one by one
ROUNDS = 7


class Peer:
    """lenstronomy set up for one row of the truth table; the set-up is not timed."""

    def __init__(self, truth: simulator.Truth, i: int, preset: simulator.Preset, rod_points: int = ROD_POINTS) -> None:
        observation, row = preset.observation, truth.images.iloc[i]
        n, h = observation.n_pixels, observation.pixel_scale
        corner = -(n - 1) / 2 * h
        data = ImageData(np.zeros((n, n)), ra_at_xy_0=corner, dec_at_xy_0=corner, transform_pix2angle=np.eye(2) * h)
        fwhm = observation.psf_sigma * math.sqrt(8 * math.log(2))
        psf = PSF("GAUSSIAN", fwhm=fwhm, pixel_size=h, truncation=TRUNCATE)
        points = truth.subhalo_arrays()[i].T.tolist()
        if row["class"] == "vort":
            # The middles of equal cells of the rod.
            along = row.rod_half_length * (2 * (np.arange(rod_points) + 0.5) / rod_points - 1)
            theta_E = row.rod_theta_E / math.sqrt(rod_points)
            x, y = row.rod_x + along * math.cos(row.rod_phi), row.rod_y + along * math.sin(row.rod_phi)
            points = [(theta_E, *place) for place in zip(x, y)]
        lens = LensModel(["SIS", "SHEAR"] + ["POINT_MASS"] * len(points))
        self.model = ImageModel(data, psf, lens, LightModel(["SERSIC_ELLIPSE"]))
        self.lens = [{"theta_E": row.theta_E}, {"gamma1": row.gamma1, "gamma2": row.gamma2}]
        self.lens += [{"theta_E": t, "center_x": x, "center_y": y} for t, x, y in points]
        source = {"e1": row.e1, "e2": row.e2, "center_x": row.source_x, "center_y": row.source_y}
        source |= {"amp": row.sersic_amplitude, "R_sersic": row.sersic_R_e, "n_sersic": row.sersic_n}
        self.random = np.random.default_rng(0)
        self.source, self.sky, self.area = [source], observation.sky, h * h

    def mean(self) -> np.ndarray:
        # lenstronomy multiplies brightness by the pixel's area; ours is in counts per pixel.
        return self.model.image(self.lens, self.source) / self.area + self.sky

    def counts(self) -> np.ndarray:
        return self.random.poisson(self.mean())


def best(*calls: Callable[[], object]) -> list[float]:
    """Least processor time of each call over interleaved rounds, in milliseconds of this one thread."""
    least = [math.inf] * len(calls)
    for _ in range(ROUNDS):
        for i, call in enumerate(calls):
            start = time.thread_time()
            call()
            least[i] = min(least[i], (time.thread_time() - start) * 1e3)
    return least


def operations(label: str, n_subhalos: int, psf_taps: int) -> int:
    """Floating-point operations a pixel needs: a multiply or an add is 1, so is a division or a root.

    cbrt, log and exp are counted as the 20 of a good vectorised one, atan2 as 30.
    """
    source = 2 * 10 + 3 + 20 + 2 + 20  # two linear forms of five terms, u² + v², cbrt, affine, exp
    blur = 2 * 2 * psf_taps
    points = n_subhalos * (8 + 1 + 3 * 2) + 2 * 5  # r² by four terms, 1/r², three weighted sums
    rod = 2 * 3 + 12 + 1 + 20 + 30 + 2 * 4
    noise = 10 + 16 + 20 + 45  # Philox, normal deviate by a polynomial of log, expansion and bound
    return source + blur + noise + {"no": 0, "sphere": points, "vort": rod}[label]


def core_rate() -> float:
    """Floating-point operations a second of a large float64 matrix product: what one core can do."""
    a = np.random.default_rng(0).random((1500, 1500))
    (ms,) = best(lambda: a @ a)
    return 2 * 1500**3 / ms * 1e3


def against_lenstronomy(n_images: int) -> dict[str, object]:
    preset = simulator.preset("deeplense")
    blocks, difference = [], {c: 0.0 for c in CLASSES}
    for start in range(0, n_images, BLOCK):
        for c in CLASSES:
            truth = simulator.draw(preset, 2026, range(start, start + BLOCK), c)
            peers = [Peer(truth, i, preset) for i in range(BLOCK)]
            # A rod of 100 points is not a rod near by: hold the images together with a finer one.
            exact = peers if c != "vort" else [Peer(truth, i, preset, 4000) for i in range(3)]
            for mean, peer in zip(simulator.render(truth, preset, noise=False).numpy(), exact):
                sigmas = np.abs(mean - peer.mean()) / np.sqrt(mean)
                difference[c] = max(difference[c], sigmas.max() if c != "vort" else np.quantile(sigmas, 0.999))
            times = best(
                lambda truth=truth: simulator.render(truth, preset, noise=False),
                lambda peers=peers: [peer.mean() for peer in peers],
                lambda truth=truth: simulator.render(truth, preset),
                lambda peers=peers: [peer.counts() for peer in peers],
            )
            blocks.append((c, *(ms / BLOCK for ms in times)))
    taps = 2 * math.ceil(TRUNCATE * preset.observation.psf_sigma / preset.observation.pixel_scale) + 1
    columns = ("ours", "lenstronomy", "ours_with_noise", "lenstronomy_with_noise")
    table = {c: dict(zip(columns, np.mean([row[1:] for row in blocks if row[0] == c], axis=0))) for c in CLASSES}
    mix = {name: float(np.mean([table[c][name] for c in CLASSES])) for name in columns}
    rate = core_rate()
    pixels = preset.observation.n_pixels**2
    need = {c: operations(c, preset.n_subhalos, taps) * pixels for c in CLASSES}
    limit_ms = float(np.mean(list(need.values()))) / rate * 1e3
    return {
        "images": len(blocks) * BLOCK,
        "ms_per_image": table | {"mix": mix},
        "times_faster": mix["lenstronomy"] / mix["ours"],
        "times_faster_with_noise": mix["lenstronomy_with_noise"] / mix["ours_with_noise"],
        "largest_difference_in_noise_sigmas": difference,
        "arithmetic": {
            "operations_per_image": need,
            "core_gflops": rate / 1e9,
            "limit_ms_with_noise": limit_ms,
            "times_above_limit": mix["ours_with_noise"] / limit_ms,
        },
    }


def archive(workers: int, n_images: int = 300) -> dict[str, float]:
    """Images a second to a finished archive, worker processes' start included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lenses.zip"
        start = time.perf_counter()
        simulator.write_archive(path, simulator.DataSet(simulator.preset("deeplense"), 1, n_images, 0), workers=workers)
        seconds = time.perf_counter() - start
        size = path.stat().st_size / n_images
        return {"workers": workers, "images_per_second": n_images / seconds, "bytes_per_image": size}


def peak_memory(n_images: int) -> float:
    """Peak resident memory of a process that writes an archive of n_images, in MiB."""
    code = (
        "import tempfile, pathlib\nfrom d4lens import simulate\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        f"    simulator.write_archive(pathlib.Path(folder) / 'a.zip', simulator.DataSet(simulator.preset('deeplense'), 1, {n_images}, 0))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30, help="images of each class in the comparison")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        # Libraries read these as they load.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    torch.set_num_threads(1)
    result = {
        "processor": platform.processor() or platform.machine(),
        "against_lenstronomy": against_lenstronomy(arguments.images),
        "archive": [archive(1), archive(os.cpu_count() or 1, 2400)],
        "peak_memory_MiB": {str(n): peak_memory(n) for n in (300, 3000)},
    }
    show(result)
    if arguments.out:
        write_json(arguments.out, result)


def show(value: object, indent: str = "") -> None:
    """Print nested results, one figure a line."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list):
            print(f"{indent}{key}:")
            show(item, indent + "  ")
        else:
            print(f"{indent}{key}: {item:.4g}" if isinstance(item, float) else f"{indent}{key}: {item}")


if __name__ == "__main__":
    main()
