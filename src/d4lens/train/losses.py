"""The losses beside the cross-entropy. Each is one number of order one, without unit; its weight is a parameter.

A network names in its attribute `losses` those that have a meaning for what it computes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from d4lens.lensing import grid
from d4lens.models.batch import LensBatch
from d4lens.observation import Observation
from d4lens.simulator.substructure import lens_convergence, substructure_convergence

Outputs = dict[str, Tensor]

# Of the convergence's error: half of what a single detectable mass reaches when smoothed to two pixels.
KAPPA_UNIT = 0.05
_FLOOR = 0.01


def total_variation(out: Outputs, batch: LensBatch, observation: Observation) -> Tensor:
    """Take the mean of |d kappa/dx| + |d kappa/dy| by forward differences, per arcsec (Rudin, Osher & Fatemi 1992).

    Parameters
    ----------
    out : dict of str to Tensor
        `kappa` (B, N, N).
    batch : LensBatch
        Not read.
    observation : Observation
        Pixel scale in arcsec.

    Returns
    -------
    Tensor
        A scalar, 1/arcsec.
    """
    kappa = out["kappa"]
    across, down = kappa.diff(dim=-1).abs().mean(), kappa.diff(dim=-2).abs().mean()
    return (across + down) / observation.pixel_scale


def sparsity(out: Outputs, batch: LensBatch, observation: Observation) -> Tensor:
    """Take the mean of |kappa|: most of the sky is empty.

    Parameters
    ----------
    out : dict of str to Tensor
        `kappa` (B, N, N).
    batch : LensBatch
        Not read.
    observation : Observation
        Not read.

    Returns
    -------
    Tensor
        A scalar.
    """
    return out["kappa"].abs().mean()


def off_centre(out: Outputs, batch: LensBatch, observation: Observation) -> Tensor:
    """Take the mean of |kappa| (r / half the image's side)²: mass belongs near the lens, the image cannot weigh it elsewhere.

    Parameters
    ----------
    out : dict of str to Tensor
        `kappa` (B, N, N).
    batch : LensBatch
        Not read.
    observation : Observation
        Grid and pixel scale in arcsec.

    Returns
    -------
    Tensor
        A scalar.
    """
    kappa = out["kappa"]
    x, y = grid(observation.n_pixels, observation.pixel_scale, dtype=kappa.dtype, device=kappa.device)
    return (kappa.abs() * ((x**2 + y**2) / observation.half_width**2)).mean()


def poisson_equation(out: Outputs, batch: LensBatch, observation: Observation) -> Tensor:
    """Take the mean of (lap(psi) - 2 kappa)², the Laplacian by five points, over the pixels that have four neighbours.

    Where psi is the network's own it ties psi to kappa; where psi solves the equation it measures roughness only.

    Parameters
    ----------
    out : dict of str to Tensor
        `psi` (B, N, N) in arcsec² and `kappa` (B, N, N).
    batch : LensBatch
        Not read.
    observation : Observation
        Pixel scale in arcsec.

    Returns
    -------
    Tensor
        A scalar.
    """
    psi, kappa = out["psi"], out["kappa"][..., 1:-1, 1:-1]
    around = psi[..., :-2, 1:-1] + psi[..., 2:, 1:-1] + psi[..., 1:-1, :-2] + psi[..., 1:-1, 2:]
    laplacian = (around - 4 * psi[..., 1:-1, 1:-1]) / observation.pixel_scale**2
    return (laplacian - 2 * kappa).square().mean()


def consistency(out: Outputs, batch: LensBatch, observation: Observation) -> Tensor:
    """Take the mean of sqrt(1 + r²) - 1, r the misfit in sigma of the re-lensed image: quadratic for noise, linear for blunders.

    Parameters
    ----------
    out : dict of str to Tensor
        `unexplained` (B, N, N) in standard deviations.
    batch : LensBatch
        Not read.
    observation : Observation
        Not read.

    Returns
    -------
    Tensor
        A scalar.
    """
    return (torch.sqrt(1 + out["unexplained"].square()) - 1).mean()


def convergence(out: Outputs, batch: LensBatch, observation: Observation) -> Tensor:
    """Take the mean squared error of kappa against the true convergence of the substructure, in units of KAPPA_UNIT².

    Parameters
    ----------
    out : dict of str to Tensor
        `kappa` (B, N, N).
    batch : LensBatch
        Its `kappa` (B, N, N).
    observation : Observation
        Not read.

    Returns
    -------
    Tensor
        A scalar.
    """
    return ((out["kappa"] - batch.need("kappa")) / KAPPA_UNIT).square().mean()


def log_convergence(out: Outputs, batch: LensBatch, observation: Observation) -> Tensor:
    """Take the mean squared error of ln kappa, floored at 0.01, against the whole lens's, which spans two decades.

    Its weight falls linearly to zero over a training: it shows the way and leaves the end to the class.

    Parameters
    ----------
    out : dict of str to Tensor
        `kappa` (B, N, N).
    batch : LensBatch
        Its `kappa` (B, N, N).
    observation : Observation
        Not read.

    Returns
    -------
    Tensor
        A scalar.
    """
    ratio = (out["kappa"] + _FLOOR) / (batch.need("kappa") + _FLOOR)
    return ratio.log().square().mean()


PHYSICS: dict[str, Callable[[Outputs, LensBatch, Observation], Tensor]] = {
    "total_variation": total_variation,
    "sparsity": sparsity,
    "centre": off_centre,
    "poisson": poisson_equation,
    "consistency": consistency,
    "convergence": convergence,
    "lens_convergence": log_convergence,
}
TRUTHS = {"convergence": substructure_convergence, "lens_convergence": lens_convergence}
"""Which convergence the batch's kappa holds, for the losses that compare with it."""
ANNEALED = ("lens_convergence",)
_INPUTS = {
    "poisson": ("psi", "kappa"),
    "consistency": ("unexplained",),
}


def physics(
    names: tuple[str, ...], weights: dict[str, float], out: Outputs, batch: LensBatch, observation: Observation
) -> dict[str, Tensor]:
    """Compute the named losses that can be had from these outputs.

    Parameters
    ----------
    names : tuple of str
        Names of PHYSICS.
    weights : dict of float
        Weight of each. One of weight zero is measured but sends no gradient.
    out : dict of Tensor
        The network's outputs.
    batch : LensBatch
        What the network was given, with the true convergence where it is known.
    observation : Observation
        Pixels of the images.

    Returns
    -------
    dict of Tensor
        Scalars, without unit, by name.
    """
    values = {}
    for name in names:
        wanted = _INPUTS.get(name, ("kappa",))
        if any(key not in out for key in wanted) or (name in TRUTHS and batch.kappa is None):
            continue
        with torch.set_grad_enabled(torch.is_grad_enabled() and weights[name] > 0):
            values[name] = PHYSICS[name](out, batch, observation)
    return values
