"""The lens galaxy's own light, and where a fit that has to tell it from the arcs sets out.

The light is a sum of concentric elliptical Gaussians of fixed widths (multi-Gaussian expansion: Cappellari 2002), none
negative; their heights are linear, centre and axes are not. A Gaussian PSF only widens them. Gaussians fitted alone
take the arcs' light, so `first_guesses` solves for galaxy, source and sky together at every trial lens, the source by
semilinear inversion (Warren & Dye 2003) on modes of a Gaussian process, and ranks the trials by the evidence (Suyu et
al. 2006), which a lens that needs a more complicated source has less of.
"""

import math

import numpy as np
import scipy  # and its `optimize` where it is needed, which takes most of a second
import torch
from numpy.typing import NDArray
from torch import Tensor

from d4lens.macrofit.smooth_lens import Prior, SmoothLensModel, total
from d4lens.macrofit.source_modes import SourceModes
from d4lens.observation import bin_pixels

SHAPE = ("light_x", "light_y", "light_e1", "light_e2")
"""Centre (arcsec) and ellipticity of the light, as the source's."""
N_WIDTHS = 16
LIGHT_NAMES = (*SHAPE, *(f"light_{i}" for i in range(N_WIDTHS)))
"""The light's parameters where there are as many Gaussians: shape, and heights in counts per native pixel."""

_STEP = 1e-4  # of the finite differences by the shape
_THETA_E = (0.8, 1.25, 9)  # lowest and highest trial over the estimate, number, equal ratios
_ELLIPTICITIES = (0.1, 0.2)  # besides round lenses, each at six angles
_STARTS = 3  # trials that are fitted
_TRIAL_MODES = (220, 1.0, 0.075, 0.11)  # number, half-width, step and length of the trials' source
_CORE = 0.7  # arcsec from the galaxy's centre within which its light alone is looked for
_LENS_ERROR, _GALAXY_ERROR = 0.3, 0.02  # shares of the arcs' and the galaxy's brightness that a trial may miss
_BRIGHTER = (1.0, 4.0, 16.0)  # trial standard deviations of the source, times the arcs' brightness in the image
_OFF = 0.25  # arcsec that a galaxy's middle may be off the image's
_CORE_RADIUS, _AROUND, _SIDES, _STANDS_OUT = 0.12, (0.3, 0.5), 6, 6.0  # arcsec, arcsec, number, standard deviations
_UNKNOWN = (0.5, 2.0, 15)  # arcsec, lowest and highest trial radius where none is given, number
_REACH = 3.0  # arcsec from the galaxy beyond which pixels say nothing of its arcs


class LensLight:
    """Elliptical Gaussians on a model's pixels.

    Parameters
    ----------
    model : SmoothLensModel
        The smooth lens whose counts the light adds to.
    n_widths : int
        Number of standard deviations, from half a native pixel to the image's half-width in equal ratios.
    centre : (float, float)
        Where the galaxy is, in arcsec; its light stays within three native pixels of it.
    largest : float
        Counts per native pixel that no Gaussian exceeds by far.
    """

    def __init__(
        self,
        model: SmoothLensModel,
        n_widths: int = N_WIDTHS,
        centre: tuple[float, float] = (0.0, 0.0),
        largest: float = 1e6,
    ) -> None:
        self.model, pixel = model, model.observation.pixel_scale
        self.widths = torch.logspace(
            math.log10(pixel / 2), math.log10(model.observation.half_width), n_widths, dtype=torch.float64
        )
        self.names = (*SHAPE, *(f"light_{i}" for i in range(n_widths)))
        place = {name: Prior(at - 3 * pixel, at + 3 * pixel) for name, at in zip(SHAPE[:2], centre)}
        shape = dict.fromkeys(SHAPE[2:], Prior(-0.4, 0.4, 0.0, 0.2))
        heights = dict.fromkeys(self.names[4:], Prior(0.0, 10 * largest, 0.0, 10 * largest))
        self.priors = {**place, **shape, **heights}
        self.x, self.y = (axis.double() for axis in model.pixel_centres())

    def gaussians(self, shape: Tensor) -> Tensor:
        """Compute the counts of each Gaussian of height 1 per native pixel.

        Parameters
        ----------
        shape : Tensor
            (4,) x and y in arcsec, and the ellipticity (e1, e2).

        Returns
        -------
        Tensor
            (G, N, N) counts.
        """
        x0, y0, e1, e2 = shape
        dx, dy = self.x - x0, self.y - y0
        e_squared = e1 * e1 + e2 * e2
        across, along = (1 - e_squared.sqrt()), (1 + e_squared.sqrt())
        # Covariance of unit area: axes (1 + e)/(1 - e) and its inverse, turned by half the angle of (e1, e2).
        long = along / across
        angle = 0.5 * torch.atan2(e2, e1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        u, v = (cos * dx + sin * dy).square(), (cos * dy - sin * dx).square()
        squared, parts = self.widths.square()[:, None, None], []
        for share, ratio in self.model.psf_shape:
            blur = (ratio * self.model.constants["psf_sigma"]) ** 2
            a, b = squared * long + blur, squared / long + blur
            height = share * squared / (a * b).sqrt()
            parts.append(self.model.binning**2 * height * torch.exp(-0.5 * (u / a + v / b)))
        return total(parts)

    def image_and_jacobian(self, values: Tensor) -> Tensor:
        """Compute the light and its derivatives.

        Parameters
        ----------
        values : Tensor
            (4 + G,) in the order of `names`.

        Returns
        -------
        Tensor
            (1 + 4 + G, N, N): counts, and their derivatives by each of `values`.
        """
        shape, heights = values[:4], values[4:]
        columns = self.gaussians(shape)
        slopes = []
        for i in range(4):
            step = torch.zeros_like(shape)
            step[i] = _STEP
            ends = (torch.tensordot(heights, self.gaussians(at), 1) for at in (shape + step, shape - step))
            slopes.append((next(ends) - next(ends)) / (2 * _STEP))
        return torch.cat([torch.tensordot(heights, columns, 1)[None], torch.stack(slopes), columns])


def shines(counts: Tensor, weights: Tensor, model: SmoothLensModel) -> bool:
    """Tell whether a lens galaxy's light shows in an image.

    It is there where the middle outshines every side of it: an isothermal lens has no image of its source there.

    Parameters
    ----------
    counts : Tensor
        (N, N) photons.
    weights : Tensor
        (N, N) inverse variances of the counts; 0 where there are no data.
    model : SmoothLensModel
        The smooth lens, for its pixels.

    Returns
    -------
    bool
        Whether it shows.
    """
    x, y = (axis.double() for axis in model.pixel_centres())
    known = weights > 0
    near = (torch.hypot(x, y) < _OFF) & known
    if not near.any():
        return False
    peak = int(torch.where(near, counts.double(), -math.inf).argmax())
    dx, dy = x - x.flatten()[peak], y - y.flatten()[peak]
    radius, side = torch.hypot(dx, dy), (torch.atan2(dy, dx) / (2 * math.pi) * _SIDES).floor() % _SIDES

    def mean(where: Tensor) -> tuple[float, float]:
        n = int(where.sum())
        return float(counts[where].double().mean()), float(weights[where].double().reciprocal().sum()) / n**2

    step = model.observation.pixel_scale * model.binning
    core = mean((radius < max(_CORE_RADIUS, 1.1 * step)) & known)
    ring = (radius > _AROUND[0]) & (radius < _AROUND[1]) & known
    sides = [mean(ring & (side == i)) for i in range(_SIDES) if (ring & (side == i)).any()]
    if not sides:
        return False
    brightest = max(sides)
    return core[0] - brightest[0] > _STANDS_OUT * math.sqrt(core[1] + brightest[1])


def core(counts: Tensor, weights: Tensor, model: SmoothLensModel) -> Tensor:
    """Measure the shape of the galaxy's light in its core, within the arcs: non-negative Gaussians at their best for each shape.

    The galaxy is the brightest place within a fifth of the image's half-width of its centre.

    Parameters
    ----------
    counts : Tensor
        (N, N) photons.
    weights : Tensor
        (N, N) inverse variances of the counts; 0 where there are no data.
    model : SmoothLensModel
        The smooth lens, for its pixels.

    Returns
    -------
    Tensor
        (4,) x and y in arcsec, and the ellipticity (e1, e2).
    """
    x, y = (axis.double() for axis in model.pixel_centres())
    near = (torch.hypot(x, y) < 0.2 * model.observation.half_width) & (weights > 0)
    peak = torch.where(near, counts.double(), -math.inf).flatten().argmax()
    centre = float(x.flatten()[peak]), float(y.flatten()[peak])
    radius = max(_CORE, 5 * model.observation.pixel_scale * model.binning)
    inside = (torch.hypot(x - centre[0], y - centre[1]) < radius) & (weights > 0)
    light = LensLight(model, 10, centre)
    root = weights[inside].double().sqrt()
    target = (counts[inside].double() * root).numpy()

    def misfit(shape: NDArray[np.float64]) -> float:
        if max(abs(shape[2:])) > 0.4:
            return math.inf
        columns = light.gaussians(torch.from_numpy(shape))[:, inside] * root
        return float(scipy.optimize.nnls(torch.cat([columns, root[None]]).T.numpy(), target)[1])

    step = model.observation.pixel_scale * model.binning / 2
    simplex = np.array([*centre, 0.0, 0.0]) + np.vstack([np.zeros(4), np.diag([step, step, 0.1, 0.1])])
    found = scipy.optimize.minimize(
        misfit, simplex[0], method="Nelder-Mead", options={"initial_simplex": simplex, "maxfev": 150}
    )
    return torch.from_numpy(found.x)


def first_guesses(
    counts: Tensor,
    weights: Tensor,
    model: SmoothLensModel,
    light: LensLight,
    shape: Tensor,
    einstein_radius: float,
) -> list[Tensor]:
    """Find starts for the fit of one image whose lens galaxy shines.

    Every trial lens is isothermal without shear and centred on the light. Its Einstein radius is within a quarter of the estimate:
    at half of it a ring-shaped source explains any ring as well. The best of each radius compete.

    Parameters
    ----------
    counts : Tensor
        (N, N) photons.
    weights : Tensor
        (N, N) inverse variances of the counts; 0 where there are no data.
    model : SmoothLensModel
        The smooth lens.
    light : LensLight
        The galaxy's light.
    shape : Tensor
        (4,) its shape, as `core` finds it.
    einstein_radius : float
        The estimate in arcsec; NaN: anywhere.

    Returns
    -------
    list of Tensor
        At most three starts (F + 4 + G,), best first.
    """
    factor = 2 if model.binning == 1 and model.n_pixels >= 64 else 1
    coarse = model.at(model.binning * factor, model.binning * factor)
    k, variance = (bin_pixels(values, factor) for values in (counts.double(), weights.double().reciprocal()))
    whole = bin_pixels(weights > 0, factor) == factor**2
    x, y = (axis.double() for axis in coarse.pixel_centres())
    used = (torch.hypot(x - shape[0], y - shape[1]) < _REACH) & whole
    root = variance[used].rsqrt()
    sky = torch.full((1, *k.shape), float(coarse.binning**2), dtype=torch.float64)
    smooth = torch.cat([LensLight(coarse, len(light.widths)).gaussians(shape), sky])[:, used].T * root[:, None]
    target = k[used] * root
    alone = torch.from_numpy(scipy.optimize.nnls(smooth.numpy(), target.numpy())[0])
    left = (target - smooth @ alone) / root
    contrast = float(left[left > left.quantile(0.9)].mean().clamp_min(left.std())) / coarse.binning**2
    # A trial's lens is off by more than the noise of bright arcs, a galaxy's isophotes by more than that of its core.
    wrong = (_LENS_ERROR * contrast * coarse.binning**2) ** 2 + (_GALAXY_ERROR * (smooth @ alone / root)) ** 2
    softer = (root.square().reciprocal() + wrong).rsqrt() / root
    root, smooth, target = root * softer, smooth * softer[:, None], target * softer
    modes = SourceModes(*_TRIAL_MODES, dtype=coarse.dtype)
    trials = []
    lowest, highest, n_radii = _THETA_E
    if math.isnan(einstein_radius):
        (lowest, highest, n_radii), einstein_radius = _UNKNOWN, 1.0
    lowest, highest = (math.log10(ratio * einstein_radius) for ratio in (lowest, highest))
    grid = torch.logspace(lowest, highest, n_radii, dtype=torch.float64).tolist()
    angles = [math.pi * i / 3 for i in range(6)]
    lenses = [(0.0, 0.0)] + [(e * math.cos(a), e * math.sin(a)) for e in _ELLIPTICITIES for a in angles]
    for theta_E in grid:
        best: tuple[float, Tensor] | None = None
        for e1, e2 in lenses:
            values = {
                "theta_E": theta_E,
                "lens_e1": e1,
                "lens_e2": e2,
                "lens_x": float(shape[0]),
                "lens_y": float(shape[1]),
            }
            evidence, found, heights = _trial(coarse, values, modes, contrast, used, root, smooth, target)
            if best is None or evidence > best[0]:
                best = (evidence, _begin(model, light, values, modes, found, heights, shape))
        assert best is not None
        trials.append((best[0], theta_E, best[1]))
    trials.sort(key=lambda trial: -trial[0])
    return [begin for _, _, begin in trials[:_STARTS]]


def _trial(
    model: SmoothLensModel,
    values: dict[str, float],
    modes: SourceModes,
    contrast: float,
    used: Tensor,
    root: Tensor,
    smooth: Tensor,
    target: Tensor,
) -> tuple[float, Tensor, Tensor]:
    """Log evidence of one lens, the source's coefficients and the heights of Gaussians and sky."""
    seen = {}

    def rays(u: Tensor, v: Tensor, light: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen["beta"] = u[0], v[0]
        return torch.ones_like(u), torch.zeros_like(u), torch.zeros_like(u)

    constants = {**model.constants, "gamma1": 0.0, "gamma2": 0.0, "source_x": 0.0, "source_y": 0.0, **values}
    model.image(torch.tensor([[constants[name] for name in model.free]], dtype=torch.float64), rays)
    u, v = (beta - values[name] for beta, name in zip(seen["beta"], ("lens_x", "lens_y")))
    n = len(u)
    columns, blurs = modes.at(u.flatten(), v.flatten()).view(n, -1), model.blurs(model.constants["psf_sigma"])
    columns = total(along @ (down @ columns).view(n, n, -1) for down, along in blurs)
    columns = columns[used] * root[:, None].to(columns)
    fisher = (columns.T @ columns).double()
    cross, right = (
        (columns.T @ torch.cat([smooth, target[:, None]], 1).to(columns)).double().split([smooth.shape[1], 1], 1)
    )
    both = torch.cat([smooth, target[:, None]], 1)
    best: tuple[float, Tensor, Tensor] | None = None
    for times in _BRIGHTER:
        height = times * contrast
        inner = height**2 * fisher + torch.eye(modes.n_modes, dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(inner)
        if failed:
            continue
        half = torch.linalg.solve_triangular(factor, height * torch.cat([cross, right], 1), upper=False)
        # What the source leaves of the Gaussians and of the data: a small problem for non-negative heights.
        reduced = both.T @ both - half.T @ half
        scale = reduced.diagonal().clamp_min(1e-30).sqrt()
        unit = reduced / (scale[:, None] * scale) + 1e-6 * torch.eye(len(scale), dtype=torch.float64)
        upper, failed = torch.linalg.cholesky_ex(unit, upper=True)
        if failed:
            continue
        heights = torch.from_numpy(scipy.optimize.nnls(upper[:, :-1].numpy(), upper[:, -1].numpy())[0])
        misfit = float((upper[:, -1] - upper[:, :-1] @ heights).square().sum() * scale[-1] ** 2)
        evidence = -0.5 * misfit - float(factor.diagonal().log().sum())
        if best is None or evidence > best[0]:
            heights = heights * scale[-1] / scale[:-1]
            found = torch.cholesky_solve(height * (right[:, 0] - cross @ heights)[:, None], factor)[:, 0]
            best = evidence, height * found, heights
    return best or (-math.inf, torch.zeros(modes.n_modes).double(), torch.zeros(smooth.shape[1]).double())


def _begin(
    model: SmoothLensModel,
    light: LensLight,
    values: dict[str, float],
    modes: SourceModes,
    coefficients: Tensor,
    heights: Tensor,
    shape: Tensor,
) -> Tensor:
    """Return a start whose Sérsic source has the place, size and brightness of the inverted one."""
    axis = torch.linspace(-modes.half_width, modes.half_width, 41, dtype=coefficients.dtype)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    bright = modes.at(u.flatten().float(), v.flatten().float()).double() @ coefficients
    peak = float(bright.max())
    bright = torch.where(bright > 0.3 * peak, bright, 0.0)
    total = bright.sum().clamp_min(1e-30)
    x, y = float((bright * u.flatten()).sum() / total), float((bright * v.flatten()).sum() / total)
    # The brightest place is where the source is; far-off fragments pull the mean.
    top = int(bright.argmax())
    x, y = 0.5 * (x + float(u.flatten()[top])), 0.5 * (y + float(v.flatten()[top]))
    size = math.sqrt(
        max(float((bright * ((u.flatten() - x) ** 2 + (v.flatten() - y) ** 2)).sum() / total) / 2, 0.05**2)
    )
    begin = {**model.constants, "gamma1": 0.0, "gamma2": 0.0, "e1": 0.0, "e2": 0.0, **values}
    begin |= {"source_x": x + values["lens_x"], "source_y": y + values["lens_y"], "n": 1.0, "R_e": min(1.2 * size, 0.6)}
    begin |= {"amplitude": max(peak, 1e-3) / math.exp(1.67) * 1.5, "sky": max(float(heights[-1]), 1e-3)}
    free = torch.tensor([begin[name] for name in model.free], dtype=torch.float64)
    return torch.cat([free, shape, heights[:-1]])
