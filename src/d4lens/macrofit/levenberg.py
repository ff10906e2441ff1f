"""Levenberg-Marquardt on many small problems at once, each with its own damping and its own end."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

_DAMPING = 1e-2  # at the start, relative to the curvature's diagonal
_ACCEPTED, _REJECTED = 0.1, 10.0  # factors on the damping
_MIN_DAMPING, _MAX_DAMPING = 1e-4, 1e8


@dataclass(frozen=True)
class Minimum:
    """Where the optimiser ended, for B rows of F parameters (float64, on the CPU).

    parameters (B, F); objective (B,); curvature (B, F, F), half the objective's Hessian; converged (B,) bool;
    iterations (B,), the trial steps each row took.
    """

    parameters: Tensor
    objective: Tensor
    curvature: Tensor
    converged: Tensor
    iterations: Tensor


def minimise(
    evaluate: Evaluate,
    start: Tensor,
    lower: Tensor,
    upper: Tensor,
    *,
    max_iterations: int,
    tolerance: float,
    rounding: float = 0.0,
) -> Minimum:
    """Minimise an objective of F parameters for each of B rows (Marquardt 1963, scaled by the curvature's diagonal).

    A row's outcome depends on that row alone. Rows that have ended leave the batch; a value that is not finite rejects
    its step, and a row that starts on one ends at once, unconverged.

    Parameters
    ----------
    evaluate : callable
        (rows (b,) int64, parameters (b, F)) -> objective (b,), score g = -1/2 grad objective (b, F) and curvature H, a positive
        semi-definite stand-in for half the Hessian (b, F, F); all float64.
    start : Tensor
        (B, F).
    lower, upper : Tensor
        (F,). A step ends at the box's wall, and a parameter pressed against it sits out.
    max_iterations : int
        Trial steps a row may take.
    tolerance : float
        A row has converged once it accepts a step that set out with g.H^-1.g, what an undamped step would take from the
        objective, below this; or once the damped step promises less than this. The second rule ends a row at a kink, where
        the slope never vanishes and every longer step has been refused.
    rounding : float
        Rise of the objective, relative, that still counts as no rise.

    Returns
    -------
    Minimum
        A row for each of B.
    """
    parameters = start.clamp(lower, upper)
    objective, score, curvature = evaluate(torch.arange(len(start)), parameters)
    lam = torch.full_like(objective, _DAMPING)
    converged = torch.zeros(len(start), dtype=torch.bool)
    iterations = torch.zeros(len(start), dtype=torch.int64)
    active = torch.nonzero(_finite(objective, score, curvature))[:, 0]
    for _ in range(max_iterations):
        if not len(active):
            break
        now, g = parameters[active], score[active]
        held = ((now <= lower) & (g < 0)) | ((now >= upper) & (g > 0))
        step, gain, promise = _step(g, curvature[active], held, lam[active])
        trial = (now + step).clamp(lower, upper)
        trial_objective, trial_score, trial_curvature = evaluate(active, trial)
        limit = objective[active] + rounding * objective[active].abs()
        accepted = (trial_objective <= limit) & _finite(trial_objective, trial_score, trial_curvature)
        rows = active[accepted]
        parameters[rows], objective[rows] = trial[accepted], trial_objective[accepted]
        score[rows], curvature[rows] = trial_score[accepted], trial_curvature[accepted]
        lam[active] = torch.where(accepted, (lam[active] * _ACCEPTED).clamp_min(_MIN_DAMPING), lam[active] * _REJECTED)
        iterations[active] += 1
        converged[active] = (accepted & (gain < tolerance)) | (promise < tolerance)
        active = active[~converged[active] & (lam[active] < _MAX_DAMPING)]
    return Minimum(parameters, objective, curvature, converged, iterations)


def undamped(score: Tensor, curvature: Tensor) -> Tensor:
    """Return the step to where a quadratic objective has its minimum: curvature^-1 score.

    Parameters
    ----------
    score : Tensor
        (b, F), minus half the objective's gradient.
    curvature : Tensor
        (b, F, F), half its Hessian.

    Returns
    -------
    Tensor
        (b, F).
    """
    nothing = torch.zeros(len(score), dtype=score.dtype)
    return _step(score, curvature, torch.zeros_like(score, dtype=torch.bool), nothing)[0]


def _finite(objective: Tensor, score: Tensor, curvature: Tensor) -> Tensor:
    return torch.isfinite(objective) & torch.isfinite(score).all(1) & torch.isfinite(curvature).all(2).all(1)


def _step(g: Tensor, h: Tensor, held: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the damped step (b, F), and what an undamped and a damped one promise (b,).

    Held parameters do not move.
    """
    g = g.masked_fill(held, 0.0)
    h = h.masked_fill(held[:, None] | held[:, :, None], 0.0)
    scale = torch.diagonal(h, dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    h = scale[:, :, None] * h * scale[:, None, :]
    g = g * scale
    # The floor keeps a direction that the image says nothing of, and a held one, from a division by zero.
    both = h[:, None] + torch.stack([lam, torch.zeros_like(lam)], 1).add(1e-9)[..., None, None] * torch.eye(h.shape[1])
    steps = torch.linalg.solve(both, g[:, None, :, None].expand(-1, 2, -1, 1))[..., 0]
    damped, undamped = (steps * g[:, None]).sum(2).unbind(1)
    return steps[:, 0] * scale, undamped, damped
