"""A lens that does not lie at the centre of its image: what it gains to move it there, and the image as seen from it."""

from functools import lru_cache

import torch
from torch import Tensor

from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.macrofit.fitting import FitResult
from d4lens.macrofit.levenberg import undamped
from d4lens.macrofit.likelihood import in_groups, objective
from d4lens.macrofit.marginal import MarginalFit, arcs
from d4lens.macrofit.smooth_lens import SmoothLensModel
from d4lens.macrofit.threads import in_threads

CENTRE = ("lens_x", "lens_y")
GRACE = 3.0
"""Standard deviations of chi2 by which noise may exceed its mean."""


@lru_cache(maxsize=64)
def freed(lens: SmoothLensModel, names: tuple[str, ...] = CENTRE) -> SmoothLensModel:
    """Return the same lens with its centre free, or other `names`, last among its parameters.

    Parameters
    ----------
    lens : SmoothLensModel
        The lens.
    names : tuple of str
        Names of PARAMETERS.

    Returns
    -------
    SmoothLensModel
        A copy.
    """
    return lens.replaced(free=(*lens.free, *names))


@lru_cache(maxsize=64)
def _at_origin(lens: SmoothLensModel) -> SmoothLensModel:
    return lens.replaced(constants={**lens.constants, "lens_x": 0.0, "lens_y": 0.0})


def promise(
    counts: Tensor, result: FitResult, lens: SmoothLensModel, names: tuple[str, ...] = CENTRE
) -> tuple[Tensor, Tensor]:
    """Take what one linear step from a fit of `lens` promises if its centre is free, or other lengths in arcsec.

    It takes one evaluation an image: a score test.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) photons per pixel.
    result : FitResult
        The fit of `lens`.
    lens : SmoothLensModel
        The lens.
    names : tuple of str
        What is to be free.

    Returns
    -------
    gained : Tensor
        (B,) the deviance gained, as for `lens` by itself it would not be.
    parameters : Tensor
        (B, F + names) of `freed(lens, names)` where the step ends, at most a sixteenth of the image's side off.
    """
    model, n = freed(lens, names), len(lens.free)
    at, score, curvature = slope(counts, result, lens, names)
    step, gain = gained(score, curvature, n)
    step = step.nan_to_num(0.0, 0.0, 0.0)
    most = lens.observation.half_width / 8
    step[:, n:] = step[:, n:].clamp(-most, most)
    return gain, (at + step).clamp(*model.walls)


def slope(
    counts: Tensor, result: FitResult, lens: SmoothLensModel, names: tuple[str, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate `freed(lens, names)` where a fit of `lens` ended.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) photon counts; not finite: no data.
    result : FitResult
        Fit of `lens` to them.
    lens : SmoothLensModel
        The smooth lens, with F free parameters.
    names : tuple of str
        Parameters that it knows, to be freed.

    Returns
    -------
    tuple of Tensor
        The parameters (B, F + names), and there the score (B, F + names) and the curvature
        (B, F + names, F + names) of half the deviance.
    """
    model = freed(lens, names)
    here = [torch.full((len(counts), 1), lens.constants[name], dtype=torch.float64) for name in names]
    at = torch.cat([result.parameters, *here], 1)

    def work(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return objective(counts[rows].to(lens.device, lens.dtype), model)(torch.arange(len(rows)), at[rows])

    threads = torch.get_num_threads() if lens.device.type == "cpu" else 1
    parts = in_threads(work, torch.arange(len(counts)).split(64), threads)
    _, score, curvature = (torch.cat(column) for column in zip(*parts))
    return at, score, curvature


def gained(score: Tensor, curvature: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Take the undamped step, and compare it with one of fewer parameters.

    Parameters
    ----------
    score, curvature : Tensor
        (b, F) and (b, F, F), of half the deviance.
    n : int
        Number of the first parameters that move in any case.

    Returns
    -------
    tuple of Tensor
        The step (b, F), and the deviance (b,) that it gains over one of the first `n` parameters alone.
    """
    step, known = undamped(score, curvature), undamped(score[:, :n], curvature[:, :n, :n])
    return step, (step * score).sum(1) - (known * score[:, :n]).sum(1)


def deviance(counts: Tensor, parameters: Tensor, lens: SmoothLensModel) -> Tensor:
    """Compute what the fit of `lens` minimises.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) photons per pixel.
    parameters : Tensor
        (B, F), in the order of `lens.free`.
    lens : SmoothLensModel
        The lens.

    Returns
    -------
    Tensor
        (B,) float64.
    """
    evaluate = objective(counts.to(lens.device, lens.dtype), lens)
    return evaluate(torch.arange(len(counts)), parameters)[0]


def unexplained(counts: Tensor, chi2: Tensor, noise: Tensor | float = 1.0) -> Tensor:
    """Compute the deviance left beyond that of noise, with GRACE.

    Parameters
    ----------
    counts : Tensor
        (B, N, N), NaN where there are no data.
    chi2 : Tensor
        (B,) per pixel.
    noise : float or Tensor
        The chi2 per pixel of noise.

    Returns
    -------
    Tensor
        (B,).
    """
    pixels = torch.isfinite(counts).sum((1, 2)).double()
    return (chi2 - noise + GRACE * (2 / pixels).sqrt()) * pixels


def places(result: FitResult, lens: SmoothLensModel) -> Tensor:
    """Return where the lenses lie, fitted or known.

    Parameters
    ----------
    result : FitResult
        The fit of `lens`.
    lens : SmoothLensModel
        The lens.

    Returns
    -------
    Tensor
        (B, 2) of (x, y), arcsec on the grid.
    """
    known = [
        result.parameters[:, lens.free.index(name)]
        if name in lens.free
        else torch.full_like(result.chi2, lens.constants[name])
        for name in CENTRE
    ]
    return torch.stack(known, 1)


def seen_from_lens(
    residual: Tensor, significance: Tensor, result: FitResult, lens: SmoothLensModel
) -> dict[str, Tensor]:
    """Move images so that every lens lies at the centre, as in all that networks were trained on.

    Residual and significance move by whole pixels, which keeps their noise. The counts are those of the smooth lens at the
    centre and the residual that it leaves.

    Parameters
    ----------
    residual, significance : Tensor
        (B, N, N) maps of the fit, in standard deviations.
    result : FitResult
        The fit.
    lens : SmoothLensModel
        What was fitted.

    Returns
    -------
    dict
        counts, residual, significance (B, N, N) and fit (B, 7) as seen from the lens; empty where all lie at the centre.
    """
    at = places(result, lens)
    if not at.any():
        return {}
    step = lens.observation.pixel_scale * lens.binning
    moves = (at / step).round().long().flip(1).neg().tolist()
    maps = {
        name: torch.stack([_moved(image, *move) for image, move in zip(images, moves, strict=True)])
        for name, images in (("residual", residual), ("significance", significance))
    }
    fit, parameters = result.columns.clone(), result.parameters.clone()
    x, y = at.unbind(1)
    gamma1, gamma2 = (fit[:, FIT_COLUMNS.index(name)] for name in ("gamma1", "gamma2"))
    # The shear pulls from the grid's origin: beta + x - x_lens, seen from the lens, has it pull from there.
    for name, shift in (
        ("source_x", gamma1 * x + gamma2 * y - x),
        ("source_y", gamma2 * x - gamma1 * y - y),
    ):
        fit[:, FIT_COLUMNS.index(name)] += shift
        parameters[:, lens.free.index(name)] += shift
    for name in CENTRE:
        if name in lens.free:
            parameters[:, lens.free.index(name)] = 0.0
    if isinstance(result, MarginalFit):
        smooth = arcs(_at_origin(lens), parameters, result.corrections)
    else:
        (smooth,) = in_groups(lambda p: (_at_origin(lens).image(p),), lens, parameters)
    smooth = smooth.float().cpu()
    return maps | {"counts": smooth + maps["residual"] * smooth.sqrt(), "fit": fit.float()}


def _moved(image: Tensor, down: int, across: int) -> Tensor:
    """Return an image (N, N) moved by whole pixels, 0 where nothing was."""
    n = len(image)
    out = torch.zeros_like(image)
    if max(abs(down), abs(across)) < n:
        rows, columns = (slice(max(0, move), n + min(0, move)) for move in (down, across))
        from_rows, from_columns = (slice(max(0, -move), n - max(0, move)) for move in (down, across))
        out[rows, columns] = image[from_rows, from_columns]
    return out
