"""One lens fitted by PyAutoLens with a pixelated source, timed; `benchmarks/macrofit.py --autolens` calls it.

    PYTHON peer_autolens.py LENS.npz

PYTHON is the interpreter of an environment with autolens (tried: 2026.7.29.1). LENS.npz holds counts (N, N), pixel_scale and
psf_sigma in arcsec, sky in counts a pixel, and the true theta_E, e1, e2, gamma1 and gamma2 of the lens. A source on a
mesh of 30 x 30 under a constant regularisation is solved for at every trial of the lens, and Nelder and Mead's search
goes uphill in the evidence from a start 1 % off the truth. Whoever knows less begins with thousands of trials more.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

TRIALS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lens", type=Path, metavar="LENS.npz")
    lens = np.load(parser.parse_args().lens)
    import autolens as al  # not in the project's environment

    pixel, sigma = float(lens["pixel_scale"]), float(lens["psf_sigma"])
    counts = lens["counts"][::-1]  # its first row is the uppermost
    taps = np.arange(-4, 5) * pixel
    kernel = np.exp(-0.5 * (taps / sigma) ** 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    maps = [np.array(values) for values in (counts - float(lens["sky"]), np.sqrt(np.maximum(counts, 1.0)), kernel)]
    data, noise, psf = (al.Array2D.no_mask(values, pixel_scales=pixel) for values in maps)
    dataset = al.Imaging(data=data, noise_map=noise, psf=al.Convolver(kernel=psf))
    dataset = dataset.apply_mask(al.Mask2D.circular(shape_native=counts.shape, pixel_scales=pixel, radius=3.0))

    def fit(values: np.ndarray) -> "al.FitImaging":
        theta_E, e1, e2, gamma1, gamma2, log_regularisation = values
        q = (1 - np.hypot(e1, e2)) / (1 + np.hypot(e1, e2))
        mass = al.mp.Isothermal(centre=(0.0, 0.0), einstein_radius=theta_E * (1 + q) / (2 * q**0.5), ell_comps=(e2, e1))
        shear = al.mp.ExternalShear(gamma_1=gamma1, gamma_2=gamma2)
        pixelization = al.Pixelization(
            mesh=al.mesh.RectangularUniform(shape=(30, 30)),
            regularization=al.reg.Constant(coefficient=float(np.exp(log_regularisation))),
        )
        galaxies = [al.Galaxy(redshift=0.5, mass=mass, shear=shear), al.Galaxy(redshift=1.0, pixelization=pixelization)]
        return al.FitImaging(dataset=dataset, tracer=al.Tracer(galaxies=galaxies))

    seconds = []

    def cost(values: np.ndarray) -> float:
        begin = time.process_time()
        try:
            evidence = float(fit(values).log_evidence)
        except Exception:  # a lens that its linear algebra cannot take
            evidence = -1e10
        seconds.append(time.process_time() - begin)
        return -evidence

    truth = np.array([float(lens[name]) for name in ("theta_E", "e1", "e2", "gamma1", "gamma2")] + [0.0])
    start = truth + np.array([0.01 * truth[0], 0.01, 0.01, 0.01, 0.01, 0.5])
    simplex = np.vstack([start, start + np.diag([0.02, 0.02, 0.02, 0.02, 0.02, 1.0])])
    cost(truth)  # compiles what it compiles
    seconds.clear()
    found = minimize(
        cost, start, method="Nelder-Mead", options={"initial_simplex": simplex, "maxfev": TRIALS, "fatol": 1.0}
    )
    best = fit(found.x)
    print(
        json.dumps(
            {
                "seconds_a_trial": float(np.median(seconds)),
                "trials": len(seconds),
                "seconds": float(np.sum(seconds)),
                "ended": bool(found.success),
                "theta_E_error": float(found.x[0] / truth[0] - 1),
                "chi2_a_pixel": float(best.chi_squared / len(dataset.data)),
                "autolens": al.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
