"""A lens without substructure: the image it makes and the image's derivatives, for a batch of parameters at once.

SIE + external shear + Sérsic source, seen through a PSF of one or several Gaussians over a flat sky. Counts are sampled at the centres of
the native pixels and then blurred, as the simulator renders them, so a fit to a simulated image has no model error;
binned counts are sums of native pixels, never a coarser sampling.

The derivatives follow the chain rule: the surface brightness I depends on the lens through the source-plane position
beta = theta - alpha(theta) alone, so dI/dp = grad_beta(I) . dbeta/dp, and blurring is linear. One image costs three
transcendental functions a pixel, each further derivative two products and a blur. The formulas of `d4lens.lensing`
stand here a second time because their derivatives need the intermediate terms; the tests hold the two equal.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d4lens.errors import PhysicsError
from d4lens.lensing import axis_ratio_and_angle, convolve_psf, grid, sie, sis, unchecked
from d4lens.lensing.light import b_n
from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.observation import Observation, bin_pixels

PARAMETERS = (*FIT_COLUMNS, "lens_e1", "lens_e2", "lens_x", "lens_y", "n", "R_e", "amplitude", "sky", "psf_sigma")
"""All that can be freed. `amplitude` (at R_e) and `sky` are counts per native pixel, whatever the binning."""

Modulation = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""What multiplies the Sérsic source: places (u, v) from its centre, each (B, S, S) in arcsec, and its light there, to a
factor and the factor's slopes by u and v."""

ONE_GAUSSIAN = ((1.0, 1.0),)
"""The shape of a PSF that is one Gaussian: all of the light, as wide as `psf_sigma`."""

_LENS = ("lens_e1", "lens_e2", "lens_x", "lens_y")
_POSITIVE = ("theta_E", "n", "R_e", "amplitude", "sky", "psf_sigma")
_FLOOR = 1e-12  # arcsec², of a squared radius: the Sérsic slope and the deflection's direction diverge at the centre
_ROUND = 1e-3  # ellipticity taken for a rounder lens: the closed form is 0/0 at 0, and alpha is off by 1e-3 of itself
_B_SLOPE = b_n(1.0) - b_n(0.0)  # b_n is linear in n


@dataclass(frozen=True)
class Prior:
    """What is known of a parameter before the fit: hard bounds, and a Gaussian where `sigma` is finite."""

    lower: float
    upper: float
    mean: float = 0.0
    sigma: float = math.inf


def bounds(observation: Observation) -> dict[str, Prior]:
    """Return the widest priors that still make sense on `observation`: no Gaussian, nothing outside the image.

    Parameters
    ----------
    observation : Observation
        Grid and pixel scale in arcsec.

    Returns
    -------
    dict of str to Prior
        One for each parameter, in its unit.
    """
    half, pixel = observation.half_width, observation.pixel_scale
    return {
        "theta_E": Prior(pixel, half),
        "gamma1": Prior(-0.6, 0.6),
        "gamma2": Prior(-0.6, 0.6),
        "source_x": Prior(-half, half),
        "source_y": Prior(-half, half),
        "e1": Prior(-0.65, 0.65),
        "e2": Prior(-0.65, 0.65),
        "lens_e1": Prior(-0.65, 0.65),
        "lens_e2": Prior(-0.65, 0.65),
        "lens_x": Prior(-half / 4, half / 4),
        "lens_y": Prior(-half / 4, half / 4),
        "n": Prior(0.5, 8.0),
        "R_e": Prior(pixel / 4, half),
        "amplitude": Prior(1e-3, 1e7),
        "sky": Prior(1e-3, 1e7),
        "psf_sigma": Prior(pixel / 4, 10 * pixel),
    }


class SmoothLensModel:
    """The smooth lens on one observation, with some of its parameters free and the others known.

    Parameters
    ----------
    observation : Observation
        The native image, the one the renderer samples.
    constants : mapping of str to float
        Values by name for PARAMETERS. The known ones keep them, the free ones start there unless the image's moments say
        better. `sky` and `psf_sigma` default to the observation's, what may be 0 to 0.
    free : sequence of str
        The parameters to fit, each one of PARAMETERS.
    priors : mapping of str to Prior, optional
        Bounds and Gaussians by name, in place of `bounds(observation)`.
    binning : int
        The counts are sums of binning x binning native pixels; a remainder at the far edges is cropped.
    sampling : int
        The image is computed at the centres of sampling x sampling blocks of native pixels. 1 is exact; a larger one, a
        divisor of binning, is for the coarse steps of a fit.
    psf_shape : sequence of (float, float)
        The PSF's round, concentric Gaussians: share of the light, and standard deviation in units of `psf_sigma`.
    dtype : torch.dtype
        Of the image and its derivatives.
    device : torch.device or str
        Where they are computed.

    Raises
    ------
    PhysicsError
        Naming a parameter that is unknown, missing or out of range.
    """

    def __init__(
        self,
        observation: Observation,
        constants: Mapping[str, float],
        free: Sequence[str] = FIT_COLUMNS,
        priors: Mapping[str, Prior] | None = None,
        *,
        binning: int = 1,
        sampling: int = 1,
        psf_shape: Sequence[tuple[float, float]] = ONE_GAUSSIAN,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        known = {name: 0.0 for name in PARAMETERS if name not in _POSITIVE}
        known |= {"sky": observation.sky, "psf_sigma": observation.psf_sigma, **constants}
        for name in (*free, *constants, *(priors or {})):
            if name not in PARAMETERS:
                raise PhysicsError(f"{name!r} is no parameter of the smooth lens; its parameters are {PARAMETERS}")
        for name in _POSITIVE:
            if name == "theta_E" and name in free:
                continue
            if name not in known:
                raise PhysicsError(f"{name} has no value; give it in constants, also as the start of a free parameter")
            if not 0 < known[name] < math.inf:
                raise PhysicsError(f"{name} must be above 0 and finite, not {known[name]}")
        if binning < 1 or sampling < 1 or binning % sampling:
            raise PhysicsError(f"sampling must divide binning, not be {sampling} of {binning}")
        self.psf_shape = tuple((float(share), float(ratio)) for share, ratio in psf_shape)
        if not self.psf_shape or not all(share > 0 and 0 < ratio < math.inf for share, ratio in self.psf_shape):
            raise PhysicsError(f"psf_shape must be shares and widths above 0, not {self.psf_shape}")
        if abs(sum(share for share, _ in self.psf_shape) - 1) > 1e-6:
            raise PhysicsError(f"the shares of psf_shape must sum to 1, not {self.psf_shape}")
        self.observation, self.constants, self.free = observation, known, tuple(free)
        self.priors = {**bounds(observation), **(priors or {})}
        self.binning, self.sampling, self.dtype, self.device = binning, sampling, dtype, torch.device(device)
        self.n_pixels = observation.n_pixels // binning
        if self.n_pixels < 8:
            raise PhysicsError(f"binning {binning} leaves {self.n_pixels} pixels a side; at least 8 are needed")
        # Pixels that the binning crops still shine into their neighbours, and the centre stays the native image's.
        samples, step = observation.n_pixels // sampling, observation.pixel_scale * sampling
        x, y = grid(samples, step, torch.float64)
        crop = samples * step / 2 - observation.half_width
        self._x, self._y = ((axis + crop).to(self.device, dtype) for axis in (x, y))
        self._bands = None
        if "psf_sigma" not in self.free:
            self._bands = [(bands(down), bands(along)) for down, along in self.blurs(known["psf_sigma"])]
        self._round = not any(name in self.free or known[name] for name in _LENS)
        if self._round:
            self._direction = sis(self._x, self._y, 1.0)

    def at(self, binning: int, sampling: int) -> "SmoothLensModel":
        """Return the same lens for counts of another binning or another sampling.

        Parameters
        ----------
        binning : int
            Native pixels a side of one of the counts'.
        sampling : int
            Native pixels a side of one sample, a divisor of `binning`.

        Returns
        -------
        SmoothLensModel
            The same lens.
        """
        return self.replaced(binning=binning, sampling=sampling)

    def replaced(self, **changes: Any) -> "SmoothLensModel":
        """Return a copy with other arguments than the ones this lens was made with.

        Parameters
        ----------
        **changes
            Arguments of the class, by name.

        Returns
        -------
        SmoothLensModel
            The copy.

        Raises
        ------
        PhysicsError
            As the class does.
        """
        own: dict[str, Any] = {
            "observation": self.observation,
            "constants": self.constants,
            "free": self.free,
            "priors": self.priors,
            "binning": self.binning,
            "sampling": self.sampling,
            "psf_shape": self.psf_shape,
            "dtype": self.dtype,
            "device": self.device,
        }
        return SmoothLensModel(**own | changes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides what the model computes, as plain values.

        Returns
        -------
        dict
            What JSON takes.
        """
        priors = {name: [p.lower, p.upper, p.mean, str(p.sigma)] for name, p in self.priors.items()}
        return {
            "observation": self.observation.to_dict(),
            "constants": self.constants,
            "free": list(self.free),
            "priors": priors,
            "binning": self.binning,
            "sampling": self.sampling,
            "psf_shape": [list(one) for one in self.psf_shape],
            "dtype": str(self.dtype),
            "device": self.device.type,
        }

    @property
    def walls(self) -> tuple[Tensor, Tensor]:  # numpydoc ignore=RT01
        """The hard bounds of the free parameters: the lower and the upper ones, each (F,) float64."""
        lower, upper = (
            torch.tensor([getattr(self.priors[name], end) for name in self.free], dtype=torch.float64)
            for end in ("lower", "upper")
        )
        return lower, upper

    def columns(self, parameters: Tensor) -> Tensor:
        """Return the seven columns of a fit's table, fitted or known.

        Parameters
        ----------
        parameters : Tensor
            (..., F), in the order of `free`; what follows is left alone.

        Returns
        -------
        Tensor
            (..., 7) float64 in the order of FIT_COLUMNS; NaN where nothing is known.
        """
        known = torch.tensor([self.constants.get(name, math.nan) for name in FIT_COLUMNS], dtype=torch.float64)
        found = known.repeat(*parameters.shape[:-1], 1)
        for i, name in enumerate(FIT_COLUMNS):
            if name in self.free:
                found[..., i] = parameters[..., self.free.index(name)]
        return found

    def pixel_centres(self) -> tuple[Tensor, Tensor]:
        """Return the coordinates of the counts' pixels, from the native image's centre.

        Returns
        -------
        x, y : Tensor
            Each (N, N), arcsec.
        """
        factor = self.binning // self.sampling
        kept = slice(self.n_pixels * factor)
        x, y = (bin_pixels(native[kept, kept], factor) / factor**2 for native in (self._x, self._y))
        return x, y

    def image(self, parameters: Tensor, modulation: Modulation | None = None) -> Tensor:
        """Compute the mean counts.

        Parameters
        ----------
        parameters : Tensor
            The free parameters (B, F), in the order of `free`.
        modulation : Modulation, optional
            What the source's light is multiplied with.

        Returns
        -------
        Tensor
            (B, N, N) photons per pixel.
        """
        return self._evaluate(parameters, modulation, derivatives=False)[:, 0]

    def image_and_jacobian(self, parameters: Tensor, modulation: Modulation | None = None) -> Tensor:
        """Compute the mean counts and their derivatives together, which share most of the work.

        Parameters
        ----------
        parameters : Tensor
            The free parameters (B, F), in the order of `free`.
        modulation : Modulation, optional
            What the source's light is multiplied with.

        Returns
        -------
        Tensor
            (B, 1 + F, N, N): `image`, then the derivative by each parameter, in photons per pixel and unit of the parameter.
        """
        return self._evaluate(parameters, modulation, derivatives=True)

    def _evaluate(self, parameters: Tensor, modulation: Modulation | None, *, derivatives: bool) -> Tensor:
        if parameters.ndim != 2 or parameters.shape[1] != len(self.free):
            raise PhysicsError(f"parameters must be (B, {len(self.free)}), not {tuple(parameters.shape)}")
        parameters = parameters.to(self.device, torch.float64)
        values = {name: parameters.new_tensor([value]) for name, value in self.constants.items()}
        values |= {name: parameters[:, i] for i, name in enumerate(self.free)}
        wanted = self.free if derivatives else ()
        light = self._sample(values, wanted, len(parameters), modulation)
        if self._bands is not None:
            out = total(_through(light, down, along) for down, along in self._bands)
        else:
            out = self._blur_each(light, values["psf_sigma"], wanted)
        if "sky" in wanted:
            out[:, 1 + self.free.index("sky")] = self.binning**2
        out[:, 0] += (self.binning**2 * values["sky"]).to(self.dtype)[:, None, None]
        return out

    def _blur_each(self, light: Tensor, sigma: Tensor, wanted: Sequence[str]) -> Tensor:
        """Every image blurred by its own PSF, and the derivative by its width in the column of that name."""
        blurs = [(share, ratio, self._blur(ratio * sigma)) for share, ratio in self.psf_shape]
        out = total(share * (blur[:, None] @ light @ blur[:, None].mT) for share, _, blur in blurs)
        if wanted:
            step = 1e-4 * self.observation.pixel_scale
            image, slopes = light[:, 0], []
            for share, ratio, blur in blurs:
                wider, narrower = (self._blur(ratio * s, torch.float64) for s in (sigma + step, sigma - step))
                change = ((wider - narrower) / (2 * step)).to(self.dtype)
                # Down the rows, then along them.
                slopes.append(share * (change @ image @ blur.mT + blur @ image @ change.mT))
            out[:, 1 + self.free.index("psf_sigma")] = total(slopes)
        return out

    def blurs(self, sigma: float) -> list[tuple[Tensor, Tensor]]:
        """Return the matrices that blur the sampled pixels into those of the counts.

        Parameters
        ----------
        sigma : float
            Standard deviation of the PSF in arcsec.

        Returns
        -------
        list of (Tensor, Tensor)
            For each Gaussian of the PSF the matrix down the rows, with its share of the light, and the one along them. Each
            is (N, S), where S samples make N pixels. The blurred image is the sum of `down @ image @ along.mT`.
        """
        widths = torch.tensor([sigma], dtype=torch.float64)
        found = [(share, self._blur(ratio * widths)[0]) for share, ratio in self.psf_shape]
        return [(share * matrix, matrix) for share, matrix in found]

    def _blur(self, sigma: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Matrices (B, N, samples) that blur one axis of the sampled image and sum its samples to counts."""
        s, f, samples = self.sampling, self.binning // self.sampling, len(self._x)
        axis = torch.eye(samples, dtype=torch.float64, device=self.device)[:, :, None]
        pixels = sigma.to(self.device, torch.float64) / (self.observation.pixel_scale * s)
        # One image at a time: the kernel ends where the widest of a batch does, and no image may depend on another.
        matrices = torch.stack([convolve_psf(axis, one)[:, :, 0].mT for one in pixels])
        summed = matrices[:, : self.n_pixels * f].reshape(-1, self.n_pixels, f, samples).sum(2)
        return (s * summed).to(dtype or self.dtype)

    def _sample(
        self, values: Mapping[str, Tensor], wanted: Sequence[str], batch: int, modulation: Modulation | None
    ) -> Tensor:
        """Surface brightness (B, 1 + F, samples, samples) in counts per native pixel, before PSF and sky, and derivatives."""
        p = {name: value.to(self.dtype)[:, None, None] for name, value in values.items()}
        x, y = self._x, self._y
        alpha_x, alpha_y, by_lens = self._deflection(p, wanted)
        u = (x - p["source_x"]) - (p["gamma1"] * x + p["gamma2"] * y) - alpha_x
        v = (y - p["source_y"]) - (p["gamma2"] * x - p["gamma1"] * y) - alpha_y
        # The squared elliptical radius q u'^2 + v'^2/q is a quadratic form, smooth in (e1, e2) also at e = 0.
        e1, e2, n, R_e = p["e1"], p["e2"], p["n"], p["R_e"]
        e_squared = e1 * e1 + e2 * e2
        area = 1 - e_squared
        xx, yy, xy = (1 + e_squared - 2 * e1) / area, (1 + e_squared + 2 * e1) / area, -2 * e2 / area
        w, z = xx * u + xy * v, xy * u + yy * v
        r_squared = (u * w + v * z).clamp_min(_FLOOR)
        b = b_n(n)
        log_ratio = torch.log(r_squared / (R_e * R_e))
        term = b * torch.exp(log_ratio / (2 * n))
        light = p["amplitude"] * torch.exp(b - term)
        factor, by_u, by_v = modulation(u, v, light) if modulation else (1.0, 0.0, 0.0)
        out = light.new_empty((batch, 1 + len(wanted), *light.shape[1:]))
        out[:, 0] = light * factor
        if not wanted:
            return out
        slope = -light * term / (n * r_squared) * factor  # 2 dI/d(r²)
        gx, gy = slope * w + light * by_u, slope * z + light * by_v
        light = light * factor
        place = {name: out[:, 1 + i] for i, name in enumerate(wanted)}
        for name, (dx, dy) in by_lens.items():
            place[name].copy_(-(gx * dx + gy * dy))
        if "gamma1" in place:
            place["gamma1"].copy_(gy * y - gx * x)
        if "gamma2" in place:
            place["gamma2"].copy_(-(gx * y + gy * x))
        if "source_x" in place:
            place["source_x"].copy_(-gx)
        if "source_y" in place:
            place["source_y"].copy_(-gy)
        for name, e, pick in (("e1", e1, u * u - v * v), ("e2", e2, 2 * u * v)):
            if name in place:
                place[name].copy_(slope * (e * (u * u + v * v + r_squared) - pick) / area)
        if "n" in place:
            place["n"].copy_(light * (_B_SLOPE * (1 - term / b) + term * log_ratio / (2 * n * n)))
        if "R_e" in place:
            place["R_e"].copy_(light * term / (n * R_e))
        if "amplitude" in place:
            place["amplitude"].copy_(light / p["amplitude"])
        for name in ("sky", "psf_sigma"):
            if name in place:
                place[name].zero_()
        return out

    def _deflection(
        self, p: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Deflection (alpha_x, alpha_y) of the lens, shear apart, and its derivatives by the lens's parameters."""
        theta_E = p["theta_E"]
        if self._round:
            cos, sin = self._direction
            return theta_E * cos, theta_E * sin, {"theta_E": (cos, sin)} if "theta_E" in wanted else {}
        e1, e2 = p["lens_e1"], p["lens_e2"]
        with unchecked():
            q, phi = axis_ratio_and_angle(e1, e2)
            alpha = sie(self._x, self._y, theta_E, q, phi, p["lens_x"], p["lens_y"])
        if not wanted:
            return *alpha, {}
        slopes = _sie_slopes(self._x - p["lens_x"], self._y - p["lens_y"], theta_E, e1, e2)
        return *alpha, {name: pair for name, pair in slopes.items() if name in wanted}


def total(parts: Iterable[Tensor]) -> Tensor:
    """Add tensors of one shape, the first to the last bit where it is alone.

    Parameters
    ----------
    parts : iterable of Tensor
        At least one. The first is changed in place.

    Returns
    -------
    Tensor
        Their sum.
    """
    first, *others = parts
    for other in others:
        first += other
    return first


def _through(light: Tensor, down: list[tuple[slice, Tensor]], along: list[tuple[slice, Tensor]]) -> Tensor:
    """Blur (..., S, S) by the bands of a matrix down the rows, then of one along them."""
    out = torch.cat([band @ light[..., take, :] for take, band in down], -2)
    return torch.cat([out[..., take] @ band.mT for take, band in along], -1)


def bands(matrix: Tensor, n_bands: int = 3) -> list[tuple[slice, Tensor]]:
    """Split a banded matrix into blocks of rows, each with the columns where it is not zero.

    That takes half the multiplications.

    Parameters
    ----------
    matrix : Tensor
        (N, M).
    n_bands : int
        Number of blocks.

    Returns
    -------
    list of (slice, Tensor)
        For each block its columns, and the block with these alone.
    """
    bands = []
    for rows in matrix.tensor_split(min(n_bands, len(matrix))):
        used = torch.nonzero(rows.any(0))[:, 0]
        take = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)
        bands.append((take, rows[:, take].contiguous()))
    return bands


def _sie_slopes(dx: Tensor, dy: Tensor, theta_E: Tensor, e1: Tensor, e2: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return derivatives of the SIE's deflection (Kormann, Schneider & Bartelmann 1994) by its parameters."""
    # By q and phi the slopes are 0/0 at e = 0: a rounder lens has those of e = _ROUND, 1e-3 off.
    e = torch.hypot(e1, e2)
    rounder = e < _ROUND
    e1, e2 = (
        torch.where(rounder, _ROUND * torch.where(e > 0, part / e.clamp_min(1e-30), axis), part)
        for part, axis in ((e1, 1.0), (e2, 0.0))
    )
    e = e.clamp_min(_ROUND)
    q, phi = (1 - e) / (1 + e), 0.5 * torch.atan2(e2, e1)
    cos, sin = torch.cos(phi), torch.sin(phi)
    s, t = cos * dx + sin * dy, cos * dy - sin * dx  # along the lens's own axes
    r_squared = (s * s + t * t).clamp_min(_FLOOR)
    psi = torch.sqrt(q * q * s * s + t * t).clamp_min(q * _FLOOR**0.5)
    f = torch.sqrt((1 - q) * (1 + q))
    norm = torch.sqrt(q) / f
    a_s, a_t = norm * torch.atan(f * s / psi), norm * torch.atanh((f * t / psi).clamp(-1 + 1e-7, 1 - 1e-7))
    alpha_x, alpha_y = cos * a_s - sin * a_t, sin * a_s + cos * a_t  # for theta_E = 1
    # grad(alpha) of any isothermal ellipse is 2 kappa times the projector across the radius.
    kappa2 = torch.sqrt(q) / psi
    across = kappa2 / r_squared
    xx, xy, yy = across * dy * dy, -across * dx * dy, across * dx * dx
    # By q at fixed axes, then by phi: a rotation turns the vector and moves the point.
    grow, pull = 1 / (2 * q) + q / (f * f), norm * (1 / f + f * s * s / (psi * psi)) * psi / r_squared
    q_s, q_t = a_s * grow - pull * q * s, a_t * grow - pull * t / q
    q_x, q_y = cos * q_s - sin * q_t, sin * q_s + cos * q_t
    phi_x, phi_y = kappa2 * dy - alpha_y, alpha_x - kappa2 * dx
    q_e = -2 / (1 + e) ** 2
    slopes = {"theta_E": (alpha_x, alpha_y)}
    slopes["lens_x"] = (-theta_E * xx, -theta_E * xy)
    slopes["lens_y"] = (-theta_E * xy, -theta_E * yy)
    for name, by_q, by_phi in (("lens_e1", q_e * e1 / e, -e2), ("lens_e2", q_e * e2 / e, e1)):
        turn = by_phi / (2 * e * e)
        slopes[name] = (theta_E * (q_x * by_q + phi_x * turn), theta_E * (q_y * by_q + phi_y * turn))
    return slopes
