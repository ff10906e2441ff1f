"""A map of sensitivity as a peer makes it: one fit of lens, source and subhalo at each place of a grid, by lenstronomy.

It needs lenstronomy, which this project does not install. Give it an environment of its own:

    python -m venv /tmp/peer
    /tmp/peer/bin/pip install lenstronomy
    /tmp/peer/bin/python benchmarks/detect_peer.py --d4lens .venv/bin/d4lens [--places 3] [--side 30] [--out FILE.json]

The lens is made by lenstronomy: SIS, shear, an elliptical Sérsic source, 150 x 150 pixels of 0.05 arcsec, Poisson counts over
a sky of 10. At each of a few places a particle swarm (lenstronomy's own, 50 particles, 50 steps) fits the ten parameters that
remain, as scans of subhalos do; the seconds of one place times the places of a grid are the scan's. `d4lens detect
--sensitivity` then runs on the same image. Seconds are those of processes, on one thread, the start of the command included.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402 - threads first
from lenstronomy.Data.imaging_data import ImageData  # noqa: E402
from lenstronomy.Data.psf import PSF  # noqa: E402
from lenstronomy.ImSim.image_model import ImageModel  # noqa: E402
from lenstronomy.LensModel.lens_model import LensModel  # noqa: E402
from lenstronomy.LightModel.light_model import LightModel  # noqa: E402
from lenstronomy.Workflow.fitting_sequence import FittingSequence  # noqa: E402

N, PIXEL, SKY, PSF_SIGMA = 150, 0.05, 10.0, 0.08625
MAIN = [{"theta_E": 1.27, "center_x": 0.0, "center_y": 0.0}, {"gamma1": 0.08, "gamma2": -0.05, "ra_0": 0.0, "dec_0": 0.0}]
SOURCE = {"amp": 100.0, "R_sersic": 0.5, "n_sersic": 1.5, "e1": 0.1, "e2": 0.05, "center_x": 0.15, "center_y": 0.1}
BAND = {
    "image_data": np.zeros((N, N)),
    "background_rms": SKY**0.5,
    "exposure_time": 1.0,
    "ra_at_xy_0": -(N - 1) / 2 * PIXEL,
    "dec_at_xy_0": -(N - 1) / 2 * PIXEL,
    "transform_pix2angle": np.eye(2) * PIXEL,
}
BLUR = {"psf_type": "GAUSSIAN", "fwhm": PSF_SIGMA * 8**0.5 * np.log(2) ** 0.5, "pixel_size": PIXEL, "truncation": 4}


def image() -> np.ndarray:
    """Counts with their sky, (150, 150)."""
    model = ImageModel(
        ImageData(**BAND), PSF(**BLUR), LensModel(["SIS", "SHEAR"]), LightModel(["SERSIC_ELLIPSE"])
    )
    return np.random.default_rng(1).poisson(model.image(MAIN, [SOURCE]) + SKY).astype(float)


def fitted(counts: np.ndarray, x: float, y: float) -> float:
    """Seconds of the processor that the fit with a subhalo at (x, y) takes."""
    fixed = [{"center_x": 0.0, "center_y": 0.0}, {"ra_0": 0.0, "dec_0": 0.0}, {"center_x": x, "center_y": y}]
    begin = [{"theta_E": 1.25}, {"gamma1": 0.0, "gamma2": 0.0}, {"theta_E": 0.03}]
    sigma = [{"theta_E": 0.02}, {"gamma1": 0.05, "gamma2": 0.05}, {"theta_E": 0.03}]
    low = [{"theta_E": 0.5}, {"gamma1": -0.3, "gamma2": -0.3}, {"theta_E": 0.0}]
    high = [{"theta_E": 2.5}, {"gamma1": 0.3, "gamma2": 0.3}, {"theta_E": 0.3}]
    known = {"R_sersic": 0.5, "n_sersic": 1.5}
    free = {"e1": 0.0, "e2": 0.0, "center_x": 0.1, "center_y": 0.1}
    ends = [dict.fromkeys(free, sign * 0.6) for sign in (-1, 1)]
    params = {
        "lens_model": [
            [{**b, **f} for b, f in zip(begin, fixed, strict=True)],
            sigma,
            fixed,
            [{**b, **f} for b, f in zip(low, fixed, strict=True)],
            [{**b, **f} for b, f in zip(high, fixed, strict=True)],
        ],
        "source_model": [[{**free, **known}], [dict.fromkeys(free, 0.05)], [known], [{**ends[0], **known}], [{**ends[1], **known}]],
    }
    data = {"multi_band_list": [[{**BAND, "image_data": counts - SKY}, BLUR, {}]], "multi_band_type": "multi-linear"}
    model = {"lens_model_list": ["SIS", "SHEAR", "POINT_MASS"], "source_light_model_list": ["SERSIC_ELLIPSE"]}
    work = FittingSequence(data, model, {}, {}, params, verbose=False)
    began = time.process_time()
    work.fit_sequence([["PSO", {"sigma_scale": 1.0, "n_particles": 50, "n_iterations": 50}]])
    return time.process_time() - began


def ours(counts: np.ndarray, command: str) -> float:
    """Seconds of the processor that the command takes."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "lens.npy", counts)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [command, "detect", f"{folder}/lens.npy", "--sensitivity", f"{folder}/map.fits", "-o", f"{folder}/found.csv"],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d4lens", required=True, help="the command")
    parser.add_argument("--places", type=int, default=3, help="that are fitted")
    parser.add_argument("--side", type=int, default=30, help="places a side of the scan that these stand for")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    counts = image()
    angles = 2 * np.pi * np.arange(arguments.places) / arguments.places
    seconds = [fitted(counts, 1.27 * np.cos(angle), 1.27 * np.sin(angle)) for angle in angles]
    scan, command = float(np.mean(seconds)) * arguments.side**2, ours(counts, arguments.d4lens)
    result = {
        "lenstronomy_seconds_a_place": float(np.mean(seconds)),
        "places_fitted": arguments.places,
        "places_of_the_scan": arguments.side**2,
        "lenstronomy_seconds_a_scan": scan,
        "d4lens_detect_sensitivity_seconds": command,
        "ratio": scan / command,
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
