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
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from d4lens.errors import PhysicsError
from d4lens.macrofit import likelihood
from d4lens.macrofit.fitting import FitResult
from d4lens.macrofit.lens_light import LIGHT_NAMES, LensLight, first_guesses
from d4lens.macrofit.lens_light import core as lens_light_core
from d4lens.macrofit.levenberg import minimise
from d4lens.macrofit.significance import PRIOR_WIDTH, kernels_of
from d4lens.macrofit.smooth_lens import ONE_GAUSSIAN, PARAMETERS, Prior, SmoothLensModel, bands, bounds, total
from d4lens.macrofit.source_modes import SourceModes
from d4lens.macrofit.start import VARIANTS, moments, starting_point
from d4lens.macrofit.threads import in_threads
from d4lens.observation import Observation, bin_pixels

_LIT = 0.1  # standard deviations of a pixel below which the source's light carries no correction
_SINGLE = 1e5  # information of one correction beyond which single precision would round away its prior of 1
_DARKEST = 0.1  # of the sky: corrections may take light away, but counts keep a variance
_DAMPING, _ACCEPTED, _REJECTED, _TRIALS = 1e-2, 0.1, 10.0, 6
_TOLERANCE = 1.0  # chi-squared that the last iteration may still have gained: one standard deviation of one parameter
_WORTH, _PATIENCE = 0.005, 4  # share of the objective that is worth more iterations, up to so many times as many
_STARTS = 3
_COARSE_PIXELS, _COARSE_ITERATIONS = 37, 15  # a side, about, of the counts that the starts are found on
_GOOD = 1.2  # chi2 on the arcs beyond which further starts are tried
_BRIGHTNESS = ("amplitude", "sky")
_LIGHT_ITERATIONS = 6  # where a lens galaxy's light is fitted too
_SAME = 0.05  # of an Einstein radius, between two starts that led to one lens
_NEAR = 1.4  # times the estimated Einstein radius, beyond which the fit has left the lens that was meant
_MASS_OFF_LIGHT, _SHEAR = 0.1, 0.1
_EVERY = 2  # places between two at which a template's lost information is computed
_BANDS = 8  # blocks of rows of a blur's matrix
_WALLS = 8  # times a step is solved again because something would leave its bounds
_CONVERGED = 0.01  # chi-squared a pixel
NUISANCE = ("n", "sky")
"""May end at their bounds: what the profile cannot be, its corrections are; a galaxy's halo is as good as a sky."""


def open_model(
    observation: Observation,
    binning: int = 1,
    constants: dict[str, float] | None = None,
    *,
    psf: bool = False,
    psf_shape: Sequence[tuple[float, float]] = ONE_GAUSSIAN,
) -> SmoothLensModel:
    """Return the smooth lens with all free that a telescope does not fix: priors as wide as lenses are.

    Parameters
    ----------
    observation : Observation
        Grid, pixel scale, PSF and sky.
    binning : int
        Native pixels a side of a pixel of the counts.
    constants : dict of str to float, optional
        Starts of the free parameters, where a better one than usual is known.
    psf : bool
        Whether the PSF's width is free too, known to 5 %.
    psf_shape : sequence of (float, float)
        The PSF's Gaussians, as `SmoothLensModel` takes them.

    Returns
    -------
    SmoothLensModel
        The lens.
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
    return SmoothLensModel(observation, begin, free, priors, binning=binning, psf_shape=psf_shape)


@dataclass(frozen=True)
class MarginalFit(FitResult):
    """A marginal fit of B images: as `FitResult`, the linear part integrated out of `covariance`.

    Attributes
    ----------
    chi2 : Tensor
        (B,) float64, Pearson's sum over the number of pixels that count less the effective degrees of freedom; 1 in the mean
        where the model is true.
    arcs_chi2 : Tensor
        (B,) float64, the same where the source shines; 1 in the mean as well.
    significance : Tensor
        (B, N, N) float32, as `macrofit.significance`, with every column profiled out.
    degrees : Tensor
        (B,) float64, effective degrees of freedom: what the data say of all parameters, tr[(F + precision)^-1 F].
    log_evidence : Tensor
        (B,) float64, log of the likelihood with the corrections integrated out, up to a constant of the data.
    corrections : Tensor
        (B, K) float64, the coefficients c.
    """

    arcs_chi2: Tensor
    significance: Tensor
    degrees: Tensor
    log_evidence: Tensor
    corrections: Tensor


def arcs(model: SmoothLensModel, parameters: Tensor, corrections: Tensor, modes: SourceModes | None = None) -> Tensor:
    """Compute the counts of the lensed source and the sky.

    Parameters
    ----------
    model : SmoothLensModel
        The smooth lens.
    parameters : Tensor
        (B, F). What it holds beyond the model's own is the galaxy's light and left out.
    corrections : Tensor
        (B, K) of the source.
    modes : SourceModes, optional
        The corrections' modes; by default `SourceModes()`.

    Returns
    -------
    Tensor
        (B, N, N) counts.
    """
    modes = modes or SourceModes(dtype=model.dtype, device=model.device)
    rows = zip(parameters[:, : len(model.free)], corrections, strict=True)
    return torch.cat([model.image(z[None], _Corrections(modes, c, slopes=False)) for z, c in rows])


def fit_marginal(
    counts: Tensor,
    model: SmoothLensModel,
    *,
    noise: Tensor | None = None,
    einstein_radius: Tensor | None = None,
    modes: SourceModes | None = None,
    iterations: int = 3,
    threads: int | None = None,
) -> MarginalFit:
    """Fit lens, source and whatever the source is beyond its profile to images.

    An image that nothing fits, whose lens ends at a bound or more than 1.4 times off the estimate comes back with
    `converged` False; none raises. An image's bytes do not depend on the others.

    Parameters
    ----------
    counts : Tensor
        (B, N, N) photons. Counts that are not finite are no data.
    model : SmoothLensModel
        The smooth lens with its free parameters, source_x and source_y among them, as `open_model` returns it.
    noise : Tensor, optional
        (B, N, N) standard deviations in counts, infinite where there are no data; by default those of photons.
    einstein_radius : Tensor, optional
        (B,) estimates in arcsec, right within a quarter, of lenses whose galaxy shines itself; NaN where nothing is
        known of it. The galaxy's light is then fitted too, from `lens_light.first_guesses`. Its parameters
        (`lens_light.LensLight.names`) follow the model's in the result. By default there is no such light.
    modes : SourceModes, optional
        The source's corrections; by default `SourceModes()`.
    iterations : int
        Of Levenberg and Marquardt after the smooth fit.
    threads : int, optional
        Images at once on a CPU; by default torch's number of threads.

    Returns
    -------
    MarginalFit
        The fit of the B images.

    Raises
    ------
    PhysicsError
        For shapes that do not fit, or noise that is not above 0.
    """
    n = model.n_pixels
    if counts.ndim != 3 or counts.shape[1:] != (n, n) or not len(counts):
        raise PhysicsError(f"counts must be (B, {n}, {n}) as the model's, B of 1 or more, not {tuple(counts.shape)}")
    if noise is not None and noise.shape != counts.shape:
        raise PhysicsError(f"noise must have the counts' shape {tuple(counts.shape)}, not {tuple(noise.shape)}")
    if einstein_radius is not None and not (
        einstein_radius.shape == (len(counts),) and (einstein_radius.nan_to_num(1.0) > 0).all()
    ):
        raise PhysicsError(f"einstein_radius must be {len(counts)} numbers above 0, one an image")
    if noise is not None and not (noise > 0).all():
        raise PhysicsError("noise must be above 0 in every pixel; give inf where there is no data")
    noises = [None] * len(counts) if noise is None else list(noise)
    images = [_Image(*image, model) for image in zip(counts, noises, strict=True)]
    modes = modes or SourceModes(dtype=model.dtype, device=model.device)

    def work(i: int) -> MarginalFit:
        try:
            if einstein_radius is not None:
                return _fit_with_light(images[i], model, modes, float(einstein_radius[i]))
            return _fit_from_anywhere(images[i], optics, iterations)
        except (RuntimeError, ValueError, ArithmeticError):  # linear algebra on what is no lens: the row stays
            return _failed(counts[i], optics, with_light=einstein_radius is not None)

    optics = _Optics(model, modes)
    threads = (threads or torch.get_num_threads()) if model.device.type == "cpu" else 1
    rows = in_threads(work, range(len(counts)), threads)
    return MarginalFit(*(torch.stack([getattr(row, field.name) for row in rows]) for field in fields(MarginalFit)))


class _Image:
    """Counts (N, N), which of them are data, and their variance if it is known rather than the photons' own.

    Parameters
    ----------
    counts, noise, model
        As `fit_marginal` takes them, of one image: (N, N).
    """

    def __init__(self, counts: Tensor, noise: Tensor | None, model: SmoothLensModel) -> None:
        self.good = torch.isfinite(counts)
        if noise is not None:
            self.good &= torch.isfinite(noise)
        self.counts = counts.to(model.dtype).where(self.good, model.constants["sky"] * model.binning**2)
        self.variance = None if noise is None else noise.to(model.dtype).square().where(self.good, 1.0)

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

    def __init__(self, model: SmoothLensModel, modes: SourceModes, light: LensLight | None = None) -> None:
        self.model, self.modes, self.light, self.kernels = model, modes, light, kernels_of(model)
        priors = [model.priors[name] for name in model.free]
        priors += light.priors.values() if light else []
        self.n_lens, self.n_dense = len(model.free), len(priors)
        priors += [Prior(-math.inf, math.inf, 0.0, 1.0)] * modes.n_modes
        self.lower, self.upper, self.mean = (
            torch.tensor([getattr(prior, name) for prior in priors], dtype=torch.float64)
            for name in ("lower", "upper", "mean")
        )
        self.precision = torch.tensor([prior.sigma**-2 for prior in priors], dtype=torch.float64)
        self.floor = _DARKEST * model.constants["sky"] * model.binning**2
        self.rays = model.at(model.binning, model.binning)
        self.blurs = None
        if "psf_sigma" not in model.free:
            self.blurs = self.rays.blurs(model.constants["psf_sigma"])


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

    def columns(self, blurs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return counts of the pixels in a rectangle by each coefficient (n, m, K), and those pixels' places (n, m) in (N, N)."""
        light = self.light.reshape(-1, 1) * self.modes.product(self.f_u, self.f_v)
        parts = [(down[:, self.rows], along[:, self.across]) for down, along in blurs]
        rows, across = _reached([down for down, _ in parts]), _reached([along for _, along in parts])
        height, width = self.light.shape
        n, k = len(parts[0][0]), self.modes.n_modes
        place = torch.arange(n * n, device=light.device).view(n, n)[rows, across]
        if not place.numel():
            return light.new_empty((*place.shape, k)), place
        light = light.view(height, width * k)

        def through(down: Tensor, along: Tensor) -> Tensor:
            out = torch.cat([band @ light[take] for take, band in bands(_narrow(down[rows]), _BANDS)])
            out = out.view(len(out), width, k)
            return torch.cat([band @ out[:, take] for take, band in bands(_narrow(along[across]), _BANDS)], 1)

        return total(through(down, along) for down, along in parts), place


def _span(flags: Tensor) -> slice:
    where = torch.nonzero(flags)[:, 0]
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)


def _narrow(blur: Tensor) -> Tensor:
    """Return the matrix without what single precision would lose anyway: a band, a quarter of the multiplications."""
    return blur.where(blur > 1e-7 * blur.max(), 0.0)


def _reached(blurs: Sequence[Tensor]) -> slice:
    """Return the rows from the first to the last that one of the matrices (N, m) brings light to."""
    reached = torch.zeros(len(blurs[0]), dtype=torch.bool, device=blurs[0].device)
    for blur in blurs:
        if blur.shape[1]:
            reached |= blur.sum(1) > 1e-3 * blur.max()
    return _span(reached)


def _expand(z: Tensor, optics: _Optics) -> _State:
    """Return the model and its derivatives by the parameters at z."""
    bend = _Corrections(optics.modes, z[optics.n_dense :], slopes=True)
    stack = optics.model.image_and_jacobian(z[None, : optics.n_lens], bend)[0]
    expected, slopes = stack[0], stack[1:]
    if optics.light:
        added = optics.light.image_and_jacobian(z[optics.n_lens : optics.n_dense]).to(stack)
        expected, slopes = expected + added[0], torch.cat([slopes, added[1:]])
    return _State(z, expected.clamp_min(optics.floor), slopes)


def _columns(state: _State, noise: Tensor, optics: _Optics) -> tuple[Tensor, Tensor]:
    """Pixels (M,) that corrections reach, flat, and the counts each correction adds there (M, K)."""
    z = state.z
    bend = _Corrections(optics.modes, torch.zeros_like(z[optics.n_dense :]), slopes=False)
    optics.rays.image(z[None, : optics.n_lens], bend)
    blurs = optics.blurs
    if blurs is None:
        blurs = optics.rays.blurs(float(z[optics.model.free.index("psf_sigma")]))
    columns, place = bend.columns(blurs)
    plain = total(down[:, bend.rows] @ bend.light @ along[:, bend.across].mT for down, along in blurs)
    bright = plain.flatten()[place] > _LIT * noise.flatten()[place]
    return place[bright], columns[bright]


@dataclass
class _Normal:
    """The normal equations at a state: Fisher matrix and the score, in float64, and what they are made of.

    weights (N²,); lit (M,) the pixels, flat, that corrections reach; columns (M, K) the modes there, over the noise.
    """

    weights: Tensor
    lit: Tensor
    fisher: Tensor
    score: Tensor
    columns: Tensor


def _normal(image: _Image, state: _State, optics: _Optics) -> _Normal:
    weights = image.weights(state.expected).flatten()
    root = weights.sqrt()
    flat = (state.slopes.flatten(1) * root).double()
    lit, columns = _columns(state, root.clamp_min(1e-30).reciprocal(), optics)
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
    score = torch.cat([flat @ misfit, columns.T.double() @ misfit[lit]])
    return _Normal(weights, lit, fisher, score - optics.precision * (state.z - optics.mean), columns)


def _objective(state: _State, image: _Image, optics: _Optics) -> float:
    return image.deviance(state.expected) + float((optics.precision * (state.z - optics.mean) ** 2).sum())


def _factor(fisher: Tensor, precision: Tensor, damping: float, n_dense: int) -> tuple[Tensor, Tensor] | None:
    """Cholesky factor of the damped normal matrix, scaled to a unit diagonal, and the scale; None if it has none."""
    h = fisher + torch.diag(precision)
    scale = h.diagonal().clamp_min(1e-30).rsqrt()
    h = scale[:, None] * h * scale
    diagonal = h.diagonal()
    diagonal += 1e-9
    diagonal[:n_dense] += damping  # corrections are linear and have a prior: they need none
    factor, failed = torch.linalg.cholesky_ex(h)
    return None if failed or not torch.isfinite(factor).all() else (factor, scale)


def _solve(factored: tuple[Tensor, Tensor], right: Tensor) -> Tensor:
    factor, scale = factored
    return scale[:, None] * torch.cholesky_solve(scale[:, None] * right, factor)


def _starts(image: _Image, model: SmoothLensModel) -> list[Tensor]:
    """Return the smooth lenses (F,) that fit the image's coarse pixels, one for each theta_E, the best first.

    With a noise map the image is scaled until its sky is Poisson's.
    """
    counts, brightness = image.counts.where(image.good, math.nan), torch.ones(len(model.free), dtype=torch.float64)
    if image.variance is not None:
        scale = float(model.constants["sky"] * model.binning**2 / image.variance[image.good].median())
        counts, model = counts * scale, _brighter(model, scale)
        brightness = torch.tensor([scale if name in _BRIGHTNESS else 1.0 for name in model.free], dtype=torch.float64)
    factor = max(1, round(model.n_pixels / _COARSE_PIXELS))
    coarse = model.at(factor * model.binning, factor * model.binning)
    small = bin_pixels(counts[None], factor)
    seen = moments(small, coarse)
    if "amplitude" in model.free:  # a tenth of the brightest pixel, as of the published images
        brightest = float(small.nan_to_num(0.0).max()) - coarse.constants["sky"] * coarse.binning**2
        coarse.constants["amplitude"] = max(brightest / (10 * coarse.binning**2), 1e-3)
    found = minimise(
        likelihood.objective(small.expand(len(VARIANTS), -1, -1), coarse),
        torch.cat([starting_point(seen, coarse, variant) for variant in range(len(VARIANTS))]),
        *model.walls,
        max_iterations=_COARSE_ITERATIONS,
        tolerance=_TOLERANCE,
    )
    radius, kept = found.parameters[:, model.free.index("theta_E")], list[int]()
    for row in found.objective.nan_to_num(math.inf, math.inf).argsort().tolist():
        if all(abs(float(radius[row] / radius[other]) - 1) > _SAME for other in kept):
            kept.append(row)
    return list(found.parameters[kept] / brightness)


def _brighter(model: SmoothLensModel, scale: float) -> SmoothLensModel:
    """Return the model of images whose values are multiplied by `scale`."""
    constants = {name: value * (scale if name in _BRIGHTNESS else 1.0) for name, value in model.constants.items()}
    priors = dict(model.priors)
    for name in _BRIGHTNESS:
        p = priors[name]
        priors[name] = Prior(*(value * scale for value in (p.lower, p.upper, p.mean, p.sigma)))
    return model.replaced(constants=constants, priors=priors)


def _fit_from_anywhere(image: _Image, optics: _Optics, iterations: int) -> MarginalFit:
    """Fit an image from the smooth lenses that fit it, until one leaves no more than noise."""
    best: MarginalFit | None = None
    for begin in _starts(image, optics.model)[:_STARTS]:
        one = _fit_one(image, begin, optics, iterations)
        if best is None or _better(one, best):
            best = one
        if best.converged and best.arcs_chi2 < _GOOD:
            break
    assert best is not None
    return best


def _better(one: MarginalFit, other: MarginalFit) -> bool:
    return (bool(one.converged), float(one.log_evidence)) > (bool(other.converged), float(other.log_evidence))


def _fit_one(image: _Image, begin: Tensor, optics: _Optics, iterations: int) -> MarginalFit:
    """Go downhill from `begin`: parameters, or parameters and corrections."""
    corrections = torch.zeros(len(optics.mean) - len(begin), dtype=torch.float64)
    state = _expand(torch.cat([begin.double(), corrections]).clamp(optics.lower, optics.upper), optics)
    normal = _normal(image, state, optics)
    objective, damping, gained = _objective(state, image, optics), _DAMPING, math.inf
    for done in range(1, _PATIENCE * iterations + 1):
        better = None
        for _ in range(_TRIALS):
            step = _step(state.z, normal, damping, optics)
            if step is not None:
                there = _expand((state.z + step).clamp(optics.lower, optics.upper), optics)
                value = _objective(there, image, optics)
                if value <= objective:
                    better, gained, objective = there, objective - value, value
                    damping *= _ACCEPTED
                    break
            damping = max(damping * _REJECTED, 1e-3)
        if better is None:
            break
        state, normal = better, _normal(image, better, optics)
        if gained < _TOLERANCE or (done >= iterations and gained < _WORTH * objective):
            break
    return _finish(image, state, normal, objective, gained, optics)


def _fit_with_light(image: _Image, model: SmoothLensModel, modes: SourceModes, einstein_radius: float) -> MarginalFit:
    """Return the best of the starts of `first_guesses`, fitted smoothly first, then with the source's corrections."""
    weights, shape, light, model = _lit(image, model)
    begun = first_guesses(image.counts, weights, model, light, shape, einstein_radius)
    smooth, optics = (_Optics(model, each, light) for each in (SourceModes(0), modes))
    fits = [_fit_one(image, _fit_one(image, z, smooth, 2).parameters, optics, _LIGHT_ITERATIONS) for z in begun]
    best = max(fits, key=lambda one: float(one.log_evidence))
    at = model.free.index("theta_E")
    found = float(best.parameters[at])
    # False lenses fit well too: believed is what two starts lead to, near the estimate.
    agree = sum(abs(float(one.parameters[at]) / found - 1) < _SAME for one in fits) > 1
    near = math.isnan(einstein_radius) or abs(math.log(found / einstein_radius)) < math.log(_NEAR)
    return replace(best, converged=best.converged & (agree and near))


def _lit(image: _Image, model: SmoothLensModel) -> tuple[Tensor, Tensor, LensLight, SmoothLensModel]:
    """Return a shining galaxy's weights (N, N), shape (4,) and light, and the model with its mass about where that is."""
    counts, variance = image.counts, image.variance
    if variance is None:
        variance = counts.clamp_min(_DARKEST * model.constants["sky"] * model.binning**2)
    weights = variance.reciprocal().where(image.good, 0.0)
    shape = lens_light_core(counts, weights, model)
    light = LensLight(model, centre=(float(shape[0]), float(shape[1])), largest=float(counts.max()))
    return weights, shape, light, _following(model, shape)


def _following(model: SmoothLensModel, shape: Tensor) -> SmoothLensModel:
    """Return the model with its mass about where the galaxy's light of `shape` (4,) is, as early-type lenses have it.

    Their axis ratio and angle are the light's within a tenth (Koopmans et al. 2006), and a shear is small.
    """
    pixel = model.observation.pixel_scale
    priors = dict(model.priors)
    for name, at in zip(("lens_x", "lens_y", "lens_e1", "lens_e2"), shape.tolist()):
        reach, sigma = (
            (2 * pixel, pixel / 2) if name in ("lens_x", "lens_y") else (_MASS_OFF_LIGHT * 3, _MASS_OFF_LIGHT)
        )
        priors[name] = Prior(at - reach, at + reach, at, sigma)
    # The darkest place of an image that a galaxy fills is no sky.
    if math.isfinite(priors["sky"].sigma):
        priors["sky"] = replace(priors["sky"], sigma=priors["sky"].mean)
    for name in ("gamma1", "gamma2"):
        priors[name] = Prior(-_SHEAR * 3, _SHEAR * 3, 0.0, _SHEAR)
    return model.replaced(priors=priors)


def _step(z: Tensor, normal: _Normal, damping: float, optics: _Optics) -> Tensor | None:
    """Take the damped step from z to the best place within the walls; None where the normal matrix has no Cholesky factor.

    What would leave through a wall stops there, and the others make the best of it.
    """
    stopped, short = torch.zeros(len(z), dtype=torch.bool), torch.zeros_like(z)
    step = short
    for _ in range(_WALLS):
        fisher = normal.fisher
        if stopped.any():
            fisher = fisher.masked_fill(stopped[:, None] | stopped, 0.0) + torch.diag(stopped.double())
        factored = _factor(fisher, optics.precision, damping, optics.n_dense)
        if factored is None:
            return None
        pull = (normal.score - normal.fisher @ short).masked_fill(stopped, 0.0)
        step = torch.where(stopped, short, _solve(factored, pull[:, None])[:, 0])
        below, above = z + step < optics.lower, z + step > optics.upper
        if not (below | above).any():
            break
        stopped |= below | above
        short = torch.where(below, optics.lower - z, torch.where(above, optics.upper - z, short))
    return step


def _finish(
    image: _Image, state: _State, normal: _Normal, objective: float, gained: float, optics: _Optics
) -> MarginalFit:
    model, n = optics.model, optics.n_dense
    parameters = state.z[:n]
    residual = (image.counts - state.expected) * normal.weights.sqrt().view_as(image.counts)
    significance = torch.zeros(state.expected.shape)
    n_pixels = int(image.good.sum())
    chi2 = arcs_chi2 = degrees = promised = math.inf
    evidence = -math.inf
    factored = _factor(normal.fisher, optics.precision, 0.0, n)
    spread = torch.full((n, n), math.inf, dtype=torch.float64)
    step = _step(state.z, normal, 0.0, optics)
    if factored is not None and step is not None and n_pixels:
        inverse = _solve(factored, torch.eye(len(state.z), dtype=torch.float64))
        spread = inverse[:n, :n]
        degrees = len(state.z) - float((inverse.diagonal() * optics.precision).sum())
        chi2 = float(residual.double().square().sum()) / max(n_pixels - degrees, 1.0)
        on_arcs = residual.flatten()[normal.lit].double().square().sum()
        arcs_chi2 = float(on_arcs) / max(len(normal.lit) - degrees, 1.0)
        inner = normal.fisher[n:, n:] + torch.eye(optics.modes.n_modes, dtype=torch.float64)
        evidence = -0.5 * (objective + float(torch.logdet(inner)))
        promised = float(step @ normal.score)
        significance = _significance(state, normal, residual, step, factored, optics)
    walls = ((parameters <= optics.lower[:n]) | (parameters >= optics.upper[:n]))[: optics.n_lens]
    at_wall = any(wall and name not in NUISANCE for wall, name in zip(walls.tolist(), model.free, strict=True))
    number = lambda value: torch.tensor(value, dtype=torch.float64)  # noqa: E731
    return MarginalFit(
        parameters=parameters,
        covariance=spread,
        chi2=number(chi2 if math.isfinite(chi2) else math.inf),
        converged=torch.tensor(math.isfinite(chi2) and min(gained, promised) < _CONVERGED * n_pixels and not at_wall),
        columns=model.columns(parameters),
        model_counts=state.expected.float(),
        residual=residual.float(),
        arcs_chi2=number(arcs_chi2),
        significance=significance,
        degrees=number(degrees),
        log_evidence=number(evidence),
        corrections=state.z[n:],
    )


def _failed(counts: Tensor, optics: _Optics, *, with_light: bool) -> MarginalFit:
    """Return the row of an image that cannot be fitted: not converged, chi2 infinite, no structure."""
    model = optics.model
    known = torch.tensor([model.constants.get(name, math.nan) for name in model.free], dtype=torch.float64)
    parameters = torch.cat([known, torch.full((len(LIGHT_NAMES) if with_light else 0,), math.nan, dtype=torch.float64)])
    infinite, nothing = torch.tensor(math.inf, dtype=torch.float64), torch.zeros(counts.shape)
    return MarginalFit(
        parameters=parameters,
        covariance=infinite.expand(len(parameters), len(parameters)).clone(),
        chi2=infinite,
        converged=torch.tensor(False),
        columns=model.columns(known),
        model_counts=nothing + model.constants["sky"] * model.binning**2,
        residual=nothing,
        arcs_chi2=infinite,
        significance=nothing,
        degrees=infinite,
        log_evidence=-infinite,
        corrections=torch.zeros(optics.modes.n_modes, dtype=torch.float64),
    )


def _significance(
    state: _State, normal: _Normal, residual: Tensor, step: Tensor, factored: tuple[Tensor, Tensor], optics: _Optics
) -> Tensor:
    """As `macrofit.significance`: what the whole model leaves of the misfit, and of each template's information.

    The first is exact at every pixel. The second, a share between 0 and 1 that changes slowly, is computed at every
    second one and interpolated.
    """
    model, n_free, n = optics.model, optics.n_dense, optics.model.n_pixels
    shift = state.slopes[[model.free.index("source_x"), model.free.index("source_y")]].float()
    weights = normal.weights.view(n, n).float()
    left = residual.flatten().double() - (step[:n_free] @ state.slopes.flatten(1).double()) * normal.weights.sqrt()
    left[normal.lit] -= (normal.columns @ step[n_free:].to(normal.columns)).double()
    explained = optics.kernels.correlate(left.view(n, n).float() * weights.sqrt() * shift, slice(0, 2))
    squares = torch.stack([shift[0] * shift[0], shift[0] * shift[1], shift[1] * shift[1]]) * weights
    information = optics.kernels.correlate(squares, slice(2, 5)).clamp_min(0)

    pixel = model.observation.pixel_scale * model.binning
    row, column = normal.lit // n, normal.lit % n
    places = torch.linspace(0, n - 1, math.ceil(n / _EVERY), dtype=weights.dtype)
    dy = (row[:, None] - places) * pixel
    dx = (column[:, None] - places) * pixel
    root = weights.flatten()[normal.lit].sqrt()
    s_x, s_y = (root * part.flatten()[normal.lit] for part in shift)
    squared = (dy * dy + pixel * pixel)[:, :, None] + (dx * dx)[:, None]
    templates = ((s_y[:, None] * dy)[:, :, None] + (s_x[:, None] * dx)[:, None]) / squared
    templates = templates.flatten(1)
    whole = torch.cat([(state.slopes.flatten(1)[:, normal.lit] * root), normal.columns.float().T])
    factor, scale = factored
    overlap = (whole.to(templates) @ templates).double() * scale[:, None]
    absorbed = torch.linalg.solve_triangular(factor, overlap, upper=False).square().sum(0)
    kept = 1 - absorbed / templates.square_().sum(0).clamp_min(1e-30)
    step_map = kept.clamp(0, 1).view(len(places), len(places))
    where = torch.linspace(0, len(places) - 1, n)
    lower = where.long().clamp_max(len(places) - 2)
    rise = (where - lower).to(step_map)
    across = torch.lerp(step_map[:, lower], step_map[:, lower + 1], rise)
    kept = torch.lerp(across[lower], across[lower + 1], rise[:, None])
    found = (explained.double() / (information.double() * kept + PRIOR_WIDTH**-2).sqrt()).float()
    return found.where(torch.isfinite(found), 0.0)


@dataclass(frozen=True)
class Expansion:
    """A marginal fit's image (N, N) to first order about the fit.

    Attributes
    ----------
    expected : Tensor
        (N, N) float64, its counts.
    weights : Tensor
        (N, N) float64, inverse variance of the counts; 0 where there are no data.
    columns : Tensor
        (F + K, N, N) float64, derivatives of the counts by the parameters and the corrections.
    precision, away : Tensor
        (F + K,) float64, inverse variance of each one's prior, and how far from the prior's mean it is.
    """

    expected: Tensor
    weights: Tensor
    columns: Tensor
    precision: Tensor
    away: Tensor


class SingleImage:
    """One image as `fit_marginal` took it, to go on with.

    Parameters
    ----------
    counts : Tensor
        (N, N) photons; not finite: no data.
    model : SmoothLensModel
        As `fit_marginal` took it.
    light : bool
        Whether the galaxy's light was fitted.
    noise : Tensor, optional
        (N, N), as `fit_marginal` took it.
    modes : SourceModes, optional
        As `fit_marginal` took them.

    Attributes
    ----------
    model : SmoothLensModel
        The smooth lens, as it was fitted: a galaxy's light says where its mass is.
    """

    def __init__(
        self,
        counts: Tensor,
        model: SmoothLensModel,
        *,
        light: bool,
        noise: Tensor | None = None,
        modes: SourceModes | None = None,
    ) -> None:
        self._image, self._light, self.model = _Image(counts, noise, model), None, model
        if light:
            _, _, self._light, self.model = _lit(self._image, model)
        self._modes = modes or SourceModes(dtype=model.dtype, device=model.device)

    def fit(self, model: SmoothLensModel, z: Tensor, iterations: int = 3) -> tuple[MarginalFit, float]:
        """Fit the smooth lens with whatever more.

        Parameters
        ----------
        model : SmoothLensModel
            What to fit.
        z : Tensor
            Where it starts: the model's parameters, the galaxy's light, the corrections.
        iterations : int
            As for `fit_marginal`.

        Returns
        -------
        fitted : MarginalFit
            The fit, its fields without the axis of images.
        objective : float
            What it ends with.
        """
        optics = self._optics(model)
        found = _fit_one(self._image, z, optics, iterations)
        return found, self.objective(model, torch.cat([found.parameters, found.corrections]))

    def objective(self, model: SmoothLensModel, z: Tensor) -> float:
        """Compute what the fit minimises: the deviance and what the priors add.

        Parameters
        ----------
        model : SmoothLensModel
            What is fitted.
        z : Tensor
            Parameters, the galaxy's light, the corrections.

        Returns
        -------
        float
            The objective, up to a constant of the data.
        """
        optics = self._optics(model)
        return _objective(_expand(z.double(), optics), self._image, optics)

    def expansion(self, model: SmoothLensModel, z: Tensor) -> Expansion:
        """Expand the image of a model to first order.

        Parameters
        ----------
        model : SmoothLensModel
            What is fitted.
        z : Tensor
            About where: parameters, the galaxy's light, the corrections.

        Returns
        -------
        Expansion
            The image and its derivatives.
        """
        optics = self._optics(model)
        state = _expand(z.double(), optics)
        weights = self._image.weights(state.expected)
        lit, added = _columns(state, weights.flatten().sqrt().clamp_min(1e-30).reciprocal(), optics)
        columns = torch.zeros((len(z), weights.numel()), dtype=torch.float64)
        columns[: optics.n_dense] = state.slopes.flatten(1)
        columns[optics.n_dense :, lit] = added.T.double()
        return Expansion(
            expected=state.expected.double(),
            weights=weights.double(),
            columns=columns.view(-1, *weights.shape),
            precision=optics.precision,
            away=(state.z - optics.mean).where(optics.precision > 0, 0.0),
        )

    def _optics(self, model: SmoothLensModel) -> _Optics:
        return _Optics(model, self._modes, self._light)
