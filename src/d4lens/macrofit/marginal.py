"""A fit that takes no source for granted: what is linear given the lens is integrated out under a Gaussian prior.

    counts = sky + P [ s(beta) (1 + sum_k c_k g_k(beta)) ] + sum_j l_j G_j(theta) + noise,    beta = theta - alpha(theta)

Not linear: the lens (SIE with free centre, external shear) and the source's Sérsic profile s, all in `SmoothLensModel`,
and the centre and axes of the lens galaxy's light. Linear: the source's corrections c (`source_modes`) and the widths l
of the lens's light (`lens_light`). Levenberg-Marquardt runs over all of them together, since a bright clump pulls the
lens as well as the corrections; each iteration costs one normal matrix of some 400 columns. With the linear part at its
best the Fisher matrix of the whole gives the lens's covariance with the linear part integrated out (Warren & Dye 2003;
Suyu et al. 2006), and every column is profiled out of the significance of one more mass (Vegetti & Koopmans 2009).

One image at a time and in double precision where it counts: 400 columns in single precision lose positive definiteness
in one image of 300.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from d4lens.errors import PhysicsError
from d4lens.macrofit.fit import FitResult, fit
from d4lens.macrofit.likelihood import covariance
from d4lens.macrofit.significance import PRIOR_WIDTH, Kernels
from d4lens.macrofit.smooth_lens import FIT_COLUMNS, PARAMETERS, Prior, SmoothLensModel, bounds
from d4lens.macrofit.source_modes import SourceModes
from d4lens.macrofit.threads import in_threads
from d4lens.observation import Observation

_LIT = 0.1  # standard deviations of a pixel below which the source's light carries no correction
_SINGLE = 1e5  # information of one correction beyond which single precision would round away its prior of 1
_DARKEST = 0.1  # of the sky: corrections may take light away, but counts keep a variance
_DAMPING, _ACCEPTED, _REJECTED, _TRIALS = 1e-2, 0.1, 10.0, 6
_TOLERANCE = 1.0  # chi-squared that the last iteration may still have gained: one standard deviation of one parameter
_WORTH, _PATIENCE = 0.02, 3  # share of the objective that is worth more iterations, up to so many times as many
_STARTS = 3
_EVERY = 2  # places between two at which a template's lost information is computed
COARSE = True


def open_model(
    observation: Observation, binning: int = 1, constants: dict[str, float] | None = None, *, psf: bool = False
) -> SmoothLensModel:
    """The smooth lens with all free that a telescope does not fix: priors as wide as lenses are.

    constants: starts of the free parameters, where a better one than usual is known. psf: the PSF's width is free too,
    known to 5 %.
    """
    pixel, walls = observation.pixel_scale, bounds(observation)
    begin = {"n": 1.5, "R_e": 0.5, "amplitude": 100.0, "sky": observation.sky or 1.0} | (constants or {})
    gaussians = {
        "gamma1": (0.0, 0.2),
        "gamma2": (0.0, 0.2),
        "lens_e1": (0.0, 0.2),
        "lens_e2": (0.0, 0.2),
        "lens_x": (0.0, 2 * pixel),
        "lens_y": (0.0, 2 * pixel),
        "n": (1.5, 1.5),
        "R_e": (0.5, 0.5),
        "sky": (begin["sky"], 0.1 * begin["sky"]),
        "psf_sigma": (observation.psf_sigma, 0.05 * observation.psf_sigma),
    }
    # The profile multiplies its corrections: below 0.6 it vanishes outside, above 5 it diverges at the centre.
    limits = {name: (wall.lower, wall.upper) for name, wall in walls.items()} | {"n": (0.6, 5.0)}
    priors = {name: Prior(*limits[name], *gaussian) for name, gaussian in gaussians.items()}
    free = [name for name in PARAMETERS if psf or name != "psf_sigma"]
    return SmoothLensModel(observation, begin, free, priors, binning=binning)


@dataclass(frozen=True)
class MarginalFit(FitResult):
    """A marginal fit of B images: as `FitResult`, the linear part integrated out of `covariance`.

    Attributes
    ----------
    chi2: Pearson's sum over the number of pixels that count less the effective degrees of freedom; 1 in the mean where
        the model is true.
    significance: (B, N, N) float32, as `macrofit.significance`, with every column profiled out.
    degrees: (B,) float64, effective degrees of freedom: what the data say of all parameters, tr[(F + precision)^-1 F].
    log_evidence: (B,) float64, log of the likelihood with the corrections integrated out, up to a constant of the data.
    corrections: (B, K) float64, the coefficients c.
    """

    significance: Tensor
    degrees: Tensor
    log_evidence: Tensor
    corrections: Tensor


def fit_marginal(
    counts: Tensor,
    model: SmoothLensModel | Observation,
    *,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    modes: SourceModes | None = None,
    iterations: int = 3,
    initial: Tensor | None = None,
    threads: int | None = None,
) -> MarginalFit:
    """Fit lens, source and whatever the source is beyond its profile to every image of `counts` (B, N, N).

    Parameters
    ----------
    model: the smooth lens with its free parameters, source_x and source_y among them; an observation stands for
        `open_model` of it.
    noise: (B, N, N) standard deviations in counts; None: photon counts. Infinite: no data.
    mask: (B, N, N) bool, True where there is no data. Counts that are not finite are no data either.
    modes: the source's corrections; None: `SourceModes()`.
    iterations: of Levenberg and Marquardt after the smooth fit.
    initial: (B, F) where they start; None: the smooth fit of the same parameters.

    An image that nothing fits comes back with `converged` False; none raises. An image's bytes do not depend on the
    others. Raises PhysicsError for shapes that do not fit, or noise that is not above 0.
    """
    if isinstance(model, Observation):
        model = open_model(model)
    n = model.n_pixels
    if counts.ndim != 3 or counts.shape[1:] != (n, n) or not len(counts):
        raise PhysicsError(f"counts must be (B, {n}, {n}) as the model's, B of 1 or more, not {tuple(counts.shape)}")
    for name, other in (("noise", noise), ("mask", mask)):
        if other is not None and other.shape != counts.shape:
            raise PhysicsError(f"{name} must have the counts' shape {tuple(counts.shape)}, not {tuple(other.shape)}")
    good = torch.isfinite(counts) & ~(torch.zeros_like(counts, dtype=torch.bool) if mask is None else mask.bool())
    if noise is not None:
        if not (noise > 0).all():
            raise PhysicsError("noise must be above 0 in every pixel; give inf where there is no data")
        good &= torch.isfinite(noise)
    counts = counts.to(model.dtype).where(good, model.constants["sky"] * model.binning**2)
    modes = modes or SourceModes(dtype=model.dtype, device=model.device)
    if initial is None:
        initial = fit(counts, model, fine_iterations=6, max_starts=_STARTS, threads=threads).parameters
    optics = _Optics(model, modes)

    def work(i: int) -> MarginalFit:
        variance = None if noise is None else noise[i].to(model.dtype).square().where(good[i], 1.0)
        return _fit_one(_Image(counts[i], good[i], variance), initial[i], optics, iterations)

    threads = (threads or torch.get_num_threads()) if model.device.type == "cpu" else 1
    rows = in_threads(work, range(len(counts)), threads)
    return MarginalFit(*(torch.stack([getattr(row, field.name) for row in rows]) for field in fields(MarginalFit)))


class _Image:
    """Counts (N, N), which of them are data, and their variance if it is known rather than the photons' own."""

    def __init__(self, counts: Tensor, good: Tensor, variance: Tensor | None) -> None:
        self.counts, self.good, self.variance = counts, good, variance

    def weights(self, expected: Tensor) -> Tensor:
        """Inverse variance (N, N), zero where there is no data."""
        return (expected if self.variance is None else self.variance).reciprocal().where(self.good, 0.0)

    def deviance(self, expected: Tensor) -> float:
        """-2 log likelihood, up to a constant of the data."""
        if self.variance is not None:
            terms = (self.counts - expected).square() / self.variance
        else:
            k = self.counts
            terms = 2 * (k * torch.log((k / expected).abs().clamp_min(1e-30)) + (expected - k))
        return float(terms.where(self.good, 0.0).sum(dtype=torch.float64))


class _Optics:
    """What all images share: the model, the modes, the kernels of the significance and where it is computed."""

    def __init__(self, model: SmoothLensModel, modes: SourceModes) -> None:
        self.model, self.modes, self.kernels = model, modes, Kernels(model)
        free = [model.priors[name] for name in model.free]
        self.lower = torch.tensor([prior.lower for prior in free], dtype=torch.float64)
        self.upper = torch.tensor([prior.upper for prior in free], dtype=torch.float64)
        zeros = torch.zeros(modes.n_modes, dtype=torch.float64)
        self.mean = torch.cat([torch.tensor([prior.mean for prior in free], dtype=torch.float64), zeros])
        self.precision = torch.cat([torch.tensor([p.sigma**-2 for p in free], dtype=torch.float64), zeros + 1])
        self.floor = _DARKEST * model.constants["sky"] * model.binning**2
        self.rays = model.at(model.binning, model.binning) if COARSE else model
        self.blur = None
        if "psf_sigma" not in model.free:
            self.blur = self.rays.blur(model.constants["psf_sigma"])


@dataclass
class _State:
    """The model at one point z = (parameters, corrections): counts (N, N), and slopes (F, N, N) by the parameters."""

    z: Tensor
    expected: Tensor
    slopes: Tensor


class _Corrections:
    """The modulation by coefficients c, which also remembers the rays for the modes' own columns."""

    def __init__(self, modes: SourceModes, coefficients: Tensor, *, slopes: bool) -> None:
        self.modes, self.slopes = modes, slopes
        self.table = modes.table(coefficients)

    def __call__(self, u: Tensor, v: Tensor, light: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reach = self.modes.half_width + 2 * self.modes.length
        inside = (u[0].abs() < reach) & (v[0].abs() < reach)
        self.rows, self.across = _span(inside.any(1)), _span(inside.any(0))
        box = (0, self.rows, self.across)
        self.light = light[box]
        self.f_u, d_u = self.modes.along(u[box].flatten(), slopes=self.slopes)
        self.f_v, d_v = self.modes.along(v[box].flatten(), slopes=self.slopes)
        table = self.table.to(self.f_u)
        mixed = self.f_u @ table
        factor, by_u, by_v = torch.ones_like(u), torch.zeros_like(u), torch.zeros_like(u)
        shape = self.light.shape
        factor[box] += (mixed * self.f_v).sum(1).view(shape)
        if d_u is not None and d_v is not None:
            by_u[box] = ((d_u @ table) * self.f_v).sum(1).view(shape)
            by_v[box] = (mixed * d_v).sum(1).view(shape)
        return factor, by_u, by_v

    def columns(self, blur: Tensor) -> tuple[Tensor, Tensor]:
        """Counts of the pixels in a rectangle by each coefficient (n, m, K), and those pixels' places (n, m) in (N, N)."""
        light = self.light.reshape(-1, 1) * self.modes.product(self.f_u, self.f_v)
        down, along = blur[:, self.rows], blur[:, self.across]
        rows, across = _span(_reached(down)), _span(_reached(along))
        height, width = self.light.shape
        out = (down[rows] @ light.view(height, -1)).view(-1, width, self.modes.n_modes)
        n = len(blur)
        place = torch.arange(n * n, device=blur.device).view(n, n)[rows, across]
        return along[across] @ out, place


def _span(flags: Tensor) -> slice:
    where = torch.nonzero(flags)[:, 0]
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)


def _reached(blur: Tensor) -> Tensor:
    return blur.sum(1) > 1e-3 * blur.max() if blur.shape[1] else blur.new_zeros(len(blur), dtype=torch.bool)


def _expand(z: Tensor, optics: _Optics) -> _State:
    """The model and its derivatives by the parameters at z."""
    n_free = len(optics.model.free)
    stack = optics.model.image_and_jacobian(z[None, :n_free], _Corrections(optics.modes, z[n_free:], slopes=True))[0]
    return _State(z, stack[0].clamp_min(optics.floor), stack[1:])


def _columns(state: _State, optics: _Optics) -> tuple[Tensor, Tensor]:
    """Pixels (M,) that corrections reach, flat, and the counts each correction adds there (M, K)."""
    z, n_free = state.z, len(optics.model.free)
    bend = _Corrections(optics.modes, torch.zeros_like(z[n_free:]), slopes=False)
    optics.rays.image(z[None, :n_free], bend)
    blur = optics.blur
    if blur is None:
        blur = optics.rays.blur(float(z[optics.model.free.index("psf_sigma")]))
    columns, place = bend.columns(blur)
    plain = blur[:, bend.rows] @ bend.light @ blur[:, bend.across].mT
    bright = plain.flatten()[place] > _LIT * state.expected.flatten()[place].sqrt()
    return place[bright], columns[bright]


@dataclass
class _Normal:
    """The normal equations at a state: Fisher matrix and the objective's descent, in float64, and what they are made of.

    weights (N²,); lit (M,) the pixels, flat, that corrections reach; columns (M, K) the modes there, over the noise.
    """

    weights: Tensor
    lit: Tensor
    fisher: Tensor
    descent: Tensor
    columns: Tensor


def _normal(image: _Image, state: _State, optics: _Optics) -> _Normal:
    weights = image.weights(state.expected).flatten()
    root = weights.sqrt()
    flat = (state.slopes.flatten(1) * root).double()
    lit, columns = _columns(state, optics)
    columns = columns * root[lit, None]
    misfit = (root * (image.counts - state.expected).flatten()).double()
    n_free, n = len(flat), len(flat) + columns.shape[1]
    fisher = flat.new_empty(n, n)
    fisher[:n_free, :n_free] = flat @ flat.T
    if columns.numel() and float(columns.square().sum(0).max()) > _SINGLE:
        columns = columns.double()
    within = columns.new_tensor([]).dtype
    fisher[n_free:, :n_free] = columns.T @ flat[:, lit].T.to(within)
    fisher[:n_free, n_free:] = fisher[n_free:, :n_free].T
    fisher[n_free:, n_free:] = columns.T @ columns
    descent = torch.cat([flat @ misfit, columns.T.double() @ misfit[lit]])
    return _Normal(weights, lit, fisher, descent - optics.precision * (state.z - optics.mean), columns)


def _objective(state: _State, image: _Image, optics: _Optics) -> float:
    return image.deviance(state.expected) + float((optics.precision * (state.z - optics.mean) ** 2).sum())


def _factor(fisher: Tensor, precision: Tensor, damping: float, n_free: int) -> tuple[Tensor, Tensor] | None:
    """Cholesky factor of the damped normal matrix, scaled to a unit diagonal, and the scale; None if it has none."""
    h = fisher + torch.diag(precision)
    scale = h.diagonal().clamp_min(1e-30).rsqrt()
    h = scale[:, None] * h * scale
    diagonal = h.diagonal()
    diagonal += 1e-9
    diagonal[:n_free] += damping  # corrections are linear and have a prior: they need none
    factor, failed = torch.linalg.cholesky_ex(h)
    return None if failed or not torch.isfinite(factor).all() else (factor, scale)


def _solve(factored: tuple[Tensor, Tensor], right: Tensor) -> Tensor:
    factor, scale = factored
    return scale[:, None] * torch.cholesky_solve(scale[:, None] * right, factor)


def _fit_one(image: _Image, begin: Tensor, optics: _Optics, iterations: int) -> MarginalFit:
    n_free = len(optics.model.free)
    z = torch.cat([begin.clamp(optics.lower, optics.upper), torch.zeros(optics.modes.n_modes, dtype=torch.float64)])
    state = _expand(z, optics)
    normal = _normal(image, state, optics)
    objective, damping, gained = _objective(state, image, optics), _DAMPING, math.inf
    for step_number in range(_PATIENCE * iterations):
        better = None
        for _ in range(_TRIALS):
            held = _held(z[:n_free], normal.descent[:n_free], optics)
            factored = _factor(_without(normal.fisher, held), optics.precision, damping, n_free)
            if factored is not None:
                trial = z + _solve(factored, _still(normal.descent, held)[:, None])[:, 0]
                trial[:n_free] = trial[:n_free].clamp(optics.lower, optics.upper)
                there = _expand(trial, optics)
                value = _objective(there, image, optics)
                if value <= objective:
                    better, gained, objective = there, objective - value, value
                    damping *= _ACCEPTED
                    break
            damping = max(damping * _REJECTED, 1e-3)
        if better is None:
            break
        z, state = better.z, better
        normal = _normal(image, state, optics)
        if gained < _TOLERANCE or (step_number + 1 >= iterations and gained < _WORTH * objective):
            break
    return _finish(image, state, normal, objective, optics)


def _held(parameters: Tensor, descent: Tensor, optics: _Optics) -> Tensor:
    """Which of the parameters press against a wall: they sit out."""
    held = ((parameters <= optics.lower) & (descent < 0)) | ((parameters >= optics.upper) & (descent > 0))
    return torch.nonzero(held)[:, 0]


def _without(fisher: Tensor, held: Tensor) -> Tensor:
    if not len(held):
        return fisher
    fisher = fisher.clone()
    fisher[held], fisher[:, held] = 0.0, 0.0
    fisher[held, held] = 1.0
    return fisher


def _still(descent: Tensor, held: Tensor) -> Tensor:
    return descent.index_fill(0, held, 0.0)


def _finish(image: _Image, state: _State, normal: _Normal, objective: float, optics: _Optics) -> MarginalFit:
    model, n_free = optics.model, len(optics.model.free)
    parameters = state.z[:n_free]
    held = _held(parameters, normal.descent[:n_free], optics)
    factored = _factor(normal.fisher, optics.precision, 0.0, n_free)
    residual = (image.counts - state.expected) * normal.weights.sqrt().view_as(image.counts)
    shape = state.expected.shape
    significance = torch.zeros(shape)
    n_pixels = int(image.good.sum())
    chi2 = degrees = gain = math.inf
    evidence = -math.inf
    spread = torch.full((n_free, n_free), math.inf, dtype=torch.float64)
    if factored is not None and n_pixels:
        inverse = _solve(factored, torch.eye(len(state.z), dtype=torch.float64))
        spread = inverse[:n_free, :n_free]
        degrees = len(state.z) - float((inverse.diagonal() * optics.precision).sum())
        chi2 = float(residual.double().square().sum()) / max(n_pixels - degrees, 1.0)
        inner = normal.fisher[n_free:, n_free:] + torch.eye(optics.modes.n_modes, dtype=torch.float64)
        evidence = -0.5 * (objective + float(torch.logdet(inner)))
        step = inverse @ _still(normal.descent, held)
        gain = float(step @ normal.descent)
        significance = _significance(state, normal, residual, step, factored, optics)
    columns = torch.tensor([model.constants.get(name, math.nan) for name in FIT_COLUMNS], dtype=torch.float64)
    for i, name in enumerate(FIT_COLUMNS):
        if name in model.free:
            columns[i] = parameters[model.free.index(name)]
    number = lambda value: torch.tensor(value, dtype=torch.float64)  # noqa: E731
    return MarginalFit(
        parameters=parameters,
        covariance=spread,
        chi2=number(chi2 if math.isfinite(chi2) else math.inf),
        converged=torch.tensor(bool(gain < _TOLERANCE and math.isfinite(chi2) and not len(held))),
        columns=columns,
        model_counts=state.expected.float(),
        residual=residual.float(),
        significance=significance,
        degrees=number(degrees),
        log_evidence=number(evidence),
        corrections=state.z[n_free:],
    )


def _significance(
    state: _State, normal: _Normal, residual: Tensor, step: Tensor, factored: tuple[Tensor, Tensor], optics: _Optics
) -> Tensor:
    """As `macrofit.significance`: what the whole model leaves of the misfit, and of each template's information.

    The first is exact at every pixel. The second, a share between 0 and 1 that changes slowly, is computed at every
    second one and interpolated.
    """
    model, n_free, n = optics.model, len(optics.model.free), optics.model.n_pixels
    shift = state.slopes[[model.free.index("source_x"), model.free.index("source_y")]].float()
    weights = normal.weights.view(n, n).float()
    left = residual.flatten().double() - (step[:n_free] @ state.slopes.flatten(1).double()) * normal.weights.sqrt()
    left[normal.lit] -= (normal.columns @ step[n_free:].to(normal.columns)).double()
    explained = optics.kernels.correlate(left.view(n, n).float() * weights.sqrt() * shift, slice(0, 2))
    squares = torch.stack([shift[0] * shift[0], shift[0] * shift[1], shift[1] * shift[1]]) * weights
    information = optics.kernels.correlate(squares, slice(2, 5)).clamp_min(0)

    pixel = model.observation.pixel_scale * model.binning
    row, column = normal.lit // n, normal.lit % n
    places = torch.arange(0, n, _EVERY)
    dy = (row[:, None] - places) * pixel
    dx = (column[:, None] - places) * pixel
    root = weights.flatten()[normal.lit].sqrt()
    s_x, s_y = (root * part.flatten()[normal.lit] for part in shift)
    squared = (dy * dy + pixel * pixel)[:, :, None] + (dx * dx)[:, None]
    templates = ((s_y[:, None] * dy)[:, :, None] + (s_x[:, None] * dx)[:, None]) / squared
    templates = templates.flatten(1)
    whole = torch.cat([(state.slopes.flatten(1)[:, normal.lit] * root), normal.columns.float().T])
    factor, scale = factored
    overlap = (whole @ templates).double() * scale[:, None]
    absorbed = torch.linalg.solve_triangular(factor, overlap, upper=False).square().sum(0)
    kept = 1 - absorbed / templates.square_().sum(0).clamp_min(1e-30)
    # At a place x of the image, x / step of the coarse map, whose ends go on flat.
    step_map = kept.clamp(0, 1).view(len(places), len(places))
    where = (torch.arange(n) / _EVERY).clamp_max(len(places) - 1)
    lower = where.long().clamp_max(len(places) - 2)
    rise = (where - lower).to(step_map)
    across = torch.lerp(step_map[:, lower], step_map[:, lower + 1], rise)
    kept = torch.lerp(across[lower], across[lower + 1], rise[:, None])
    return (explained.double() / (information.double() * kept + PRIOR_WIDTH**-2).sqrt()).float()
