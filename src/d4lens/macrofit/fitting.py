"""Fit the smooth lens to images: its parameters, what it leaves over, and how well it describes each image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import pandas as pd
import torch
from torch import Tensor

from d4lens.errors import PhysicsError
from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.macrofit.levenberg import Minimum, minimise
from d4lens.macrofit.likelihood import covariance, in_groups, objective
from d4lens.macrofit.smooth_lens import SmoothLensModel
from d4lens.macrofit.start import VARIANTS, moments, starting_point
from d4lens.macrofit.threads import in_threads
from d4lens.observation import bin_pixels

TABLE_COLUMNS = ("path", *FIT_COLUMNS, "chi2", "converged")
"""Columns of fit.csv; lengths in arcsec, chi2 per pixel."""

_ROUNDING = 1e-6  # of a deviance in float32
_COARSE_TOLERANCE, _TOLERANCE = 1.0, 1e-2  # chi-square left to gain: one standard deviation, and a tenth of one
_POOR = 4.0  # coarse deviance a pixel above which further starts are tried, converged or not


@dataclass(frozen=True)
class FitResult:
    """A fit of B images; every field has a row for each, on the CPU.

    Attributes
    ----------
    parameters: (B, F) float64, the free parameters in the order of the model's `free`; arcsec for lengths.
    covariance: (B, F, F) float64, inverse Fisher information; infinite where the image says nothing.
    chi2: (B,) float64, Pearson's sum of (k - m)²/m over the number of pixels with data, 1 in the mean where the model is
        true; infinite for an image without any.
    converged: (B,) bool.
    columns: (B, 7) float64, FIT_COLUMNS whether free or known.
    model_counts, residual: (B, N, N) float32; residual = (k - m)/sqrt(m), 0 where there are no data.
    """

    parameters: Tensor
    covariance: Tensor
    chi2: Tensor
    converged: Tensor
    columns: Tensor
    model_counts: Tensor
    residual: Tensor

    @property
    def sigma(self) -> Tensor:  # numpydoc ignore=RT01
        """(B, F) standard deviations of the parameters."""
        return torch.diagonal(self.covariance, dim1=1, dim2=2).clamp_min(0).sqrt()

    def rows(self, which: Tensor | slice | list[int]) -> Self:
        """Take some of the images.

        Parameters
        ----------
        which : Tensor, slice or list of int
            Which of the B.

        Returns
        -------
        FitResult
            Their fit, of the same kind.
        """
        return type(self)(*(getattr(self, field.name)[which] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Put fits of the same parameters together.

        Parameters
        ----------
        parts : sequence of FitResult
            At least one, all of this kind.

        Returns
        -------
        FitResult
            All their images, in order.
        """
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def table(self, paths: Sequence[str]) -> pd.DataFrame:
        """Return the fit as a table.

        Parameters
        ----------
        paths : sequence of str
            The images' names.

        Returns
        -------
        pandas.DataFrame
            One row an image, TABLE_COLUMNS.
        """
        values = {name: self.columns[:, i].numpy() for i, name in enumerate(FIT_COLUMNS)}
        table = {"path": list(paths), **values, "chi2": self.chi2.numpy(), "converged": self.converged.numpy()}
        return pd.DataFrame(table, columns=list(TABLE_COLUMNS))


def fit_smooth_lens(
    counts: Tensor,
    model: SmoothLensModel,
    *,
    coarse_iterations: int = 12,
    fine_iterations: int = 10,
    max_starts: int = 4,
    batch_size: int = 64,
    threads: int | None = None,
    initial: Tensor | None = None,
) -> FitResult:
    """Fit `model` to every image.

    A coarse fit to counts binned 2 x 2 (a model of binned counts is sampled more coarsely instead) sets out from the
    image's moments, and from other places only where it did not converge or fits badly; a fine one ends it. The result of
    an image is the same to the bit for any `threads`, any `batch_size` and any other images. An image that nothing fits
    comes back with its chi2 and `converged` False; none raises.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) photons per pixel of any real type. A pixel of NaN or infinity holds no data and carries no weight.
    model : SmoothLensModel
        What is fitted.
    coarse_iterations, fine_iterations : int
        Steps an image may take; 0 leaves the coarse fit out.
    max_starts : int
        Places that the coarse fit may set out from, at most.
    batch_size : int
        Images that a thread works on at once, which bounds the memory.
    threads : int, optional
        Threads; None takes torch's number, one on a GPU.
    initial : Tensor, optional
        (B, F), a start for each image, which leaves the coarse fit out.

    Returns
    -------
    FitResult
        A row for each image.

    Raises
    ------
    PhysicsError
        For counts of another shape than the model's, or `initial` of another shape than theirs.
    """
    n = model.n_pixels
    if counts.ndim != 3 or counts.shape[1:] != (n, n) or not len(counts):
        raise PhysicsError(f"counts must be (B, {n}, {n}) as the model's, B of 1 or more, not {tuple(counts.shape)}")
    if not 1 <= max_starts <= len(VARIANTS):
        raise PhysicsError(f"max_starts must be 1 to {len(VARIANTS)}, not {max_starts}")
    if initial is not None and initial.shape != (len(counts), len(model.free)):
        raise PhysicsError(f"initial must be {(len(counts), len(model.free))}, not {tuple(initial.shape)}")
    threads = (threads or torch.get_num_threads()) if model.device.type == "cpu" else 1
    size = min(batch_size, math.ceil(len(counts) / threads))

    def work(first: int) -> FitResult:
        rows = slice(first, first + size)
        begin = initial[rows].double() if initial is not None else None
        return _fit_batch(counts[rows], model, begin, coarse_iterations, fine_iterations, max_starts)

    return FitResult.joined(in_threads(work, range(0, len(counts), size), threads))


def _fit_batch(
    counts: Tensor,
    model: SmoothLensModel,
    begin: Tensor | None,
    coarse_iterations: int,
    fine_iterations: int,
    max_starts: int,
) -> FitResult:
    counts = counts.to(model.device, model.dtype)
    good = torch.isfinite(counts)
    counts = counts.where(good, math.nan)
    seen = good.sum((1, 2)).cpu()
    lower, upper = model.walls
    if begin is None:
        coarse = _coarser(model)
        small = bin_pixels(counts, coarse.binning // model.binning)
        begin = _coarse_fit(small, coarse, lower, upper, coarse_iterations, max_starts)
    end = minimise(
        objective(counts, model),
        begin,
        lower,
        upper,
        max_iterations=fine_iterations,
        tolerance=_TOLERANCE,
        rounding=_ROUNDING,
    )
    (expected,) = in_groups(lambda parameters: (model.image(parameters),), model, end.parameters)
    residual = ((counts - expected) * expected.rsqrt()).where(good, 0.0)
    chi2 = (residual * residual).reshape(len(counts), -1).sum(1, dtype=torch.float64).cpu() / seen
    return FitResult(
        parameters=end.parameters,
        covariance=covariance(end.curvature),
        chi2=torch.where(torch.isfinite(chi2), chi2, math.inf),
        converged=end.converged & (seen > 0),
        columns=model.columns(end.parameters),
        model_counts=expected.float().cpu(),
        residual=residual.float().cpu(),
    )


def _coarse_fit(
    counts: Tensor, model: SmoothLensModel, lower: Tensor, upper: Tensor, iterations: int, max_starts: int
) -> Tensor:
    """Parameters (B, F) near the best optimum that the moments and, where that is poor, further starts lead to."""
    seen = moments(counts, model)
    if not iterations:
        return starting_point(seen, model, 0)
    evaluate = objective(counts, model)
    pixels = torch.isfinite(counts).sum((1, 2)).cpu()

    def descend(rows: Tensor, variant: int) -> Minimum:
        return minimise(
            lambda among, parameters: evaluate(rows[among], parameters),
            starting_point(seen[rows], model, variant),
            lower,
            upper,
            max_iterations=iterations,
            tolerance=_COARSE_TOLERANCE,
            rounding=_ROUNDING,
        )

    best = descend(torch.arange(len(counts)), 0)
    for variant in range(1, max_starts):
        again = torch.nonzero(~best.converged | ~(best.objective < _POOR * pixels))[:, 0]
        if not len(again):
            break
        other = descend(again, variant)
        better = ~(other.objective >= best.objective[again])
        for field in fields(Minimum):
            getattr(best, field.name)[again[better]] = getattr(other, field.name)[better]
    return best.parameters


def _coarser(model: SmoothLensModel) -> SmoothLensModel:
    """Return the model of the coarse fit.

    It has twice the native pixels for native counts, one sample a pixel for binned ones.
    """
    small = model.observation.n_pixels // 2 < 8
    return model.at(2, 2) if model.binning == 1 and not small else model.at(model.binning, model.binning)
