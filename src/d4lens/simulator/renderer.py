"""From truth tables to images: the noise-free image, and the counts a telescope would record.

An image costs half a millisecond of one core. Images are rendered one at a time, so that the bytes of one do not depend on
the others. The physics is that of `d4lens.lensing`, and a test holds the two equal. Only the arithmetic is fused here,
because the pure functions take ten times as long.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from d4lens import lensing
from d4lens.data.truth import OWN_COLUMNS, Truth
from d4lens.errors import PhysicsError
from d4lens.observation import Observation
from d4lens.simulator.draws import components, noise_stream
from d4lens.simulator.noise import PoissonQuantile
from d4lens.simulator.priors import PARAMETER_RANGES, Preset

_ALWAYS = (
    *("theta_E", "lens_q", "lens_phi", "gamma1", "gamma2", "source_x", "source_y", "source_q", "source_phi"),
    *("sersic_amplitude", "sersic_R_e", "sersic_n"),
)
_COLUMNS = (
    *_ALWAYS,
    *("rod_theta_E", "rod_half_length", "rod_phi", "rod_x", "rod_y", "exposure", "background_rms"),
)
_BLOCK = 3000  # pixels whose distances to 25 point masses fit the second-level cache together


def render(truth: Truth, preset: Preset, noise: bool = True) -> Tensor:
    """Render the images of a truth table.

    The noise of an image depends on its preset's name, seed, split and index only, not on the images beside it.

    Parameters
    ----------
    truth : Truth
        B lenses, as `draw` makes them.
    preset : Preset
        The observation and the kind of noise.
    noise : bool
        False for the mean counts, with the sky.

    Returns
    -------
    Tensor
        (B, N, N) float64. `poisson` noise gives whole counts. `deeplensesim` noise gives
        Poisson(signal) + exposure x N(0, background_rms), and, unless the preset is `corrected`, a Poisson draw of that
        (clipped at 0), as published. The PSF ends at 6 sigma, which moves a pixel by up to 1e-8 of the brightest.

    Raises
    ------
    PhysicsError
        If a value lies outside its physical range.
    """
    values = _values(truth)
    n = preset.observation.n_pixels
    images = np.empty((len(truth), n, n))
    renderer, exposer = _Renderer(preset.observation), _Exposer(preset)
    keys = zip(*(truth.images[name].tolist() for name in ("preset", "seed", "split", "index")))
    # BLAS rounds the ends of what each thread gets its own way, and on matrices this small threads only wait.
    with _blas().limit(limits=1):
        for image, row, points, key in zip(images, values, truth.subhalo_arrays(), keys):
            if "snr" in row:
                drawn = row | dict(zip(("preset", "seed", "split", "index"), key))
                renderer.own_signal(row, points, components(preset, drawn), image)
            else:
                renderer.signal(row, points, image)
            exposer(image, row, noise_stream(*key) if noise else None)
    return torch.from_numpy(images)


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _values(truth: Truth) -> list[dict[str, float]]:
    """Return the numbers of each row, checked."""
    columns = (*_COLUMNS, *(OWN_COLUMNS if "snr" in truth.images else ()))
    table = truth.images[list(columns)].to_numpy(np.float64)
    if len(table):
        missing = np.isnan(table).any(axis=0)
        for name, low, high, empty in zip(columns, np.fmin.reduce(table), np.fmax.reduce(table), missing):
            if name in _ALWAYS and (empty or not math.isfinite(high - low)):
                raise PhysicsError(f"{name} must be finite in every row, not {table[:, _COLUMNS.index(name)].tolist()}")
            if name in PARAMETER_RANGES and not math.isnan(low):
                PARAMETER_RANGES[name].check(name, float(low))
                PARAMETER_RANGES[name].check(name, float(high))
    return [dict(zip(columns, row)) for row in table.tolist()]


class _Exposer:
    """Turns the signal (counts, or counts per second where the preset has an exposure) into what is recorded."""

    def __init__(self, preset: Preset) -> None:
        n = preset.observation.n_pixels
        self.preset = preset
        self.quantile = PoissonQuantile(n * n)
        self.numbers = np.empty((n, n))

    def __call__(self, image: NDArray[np.float64], row: dict[str, float], stream: np.random.Generator | None) -> None:
        preset = self.preset
        image += row.get("image_sky", preset.observation.sky)
        if preset.noise == "deeplensesim":
            image *= row["exposure"]
        if stream is None:
            return
        counts = image.reshape(-1)
        self.quantile(counts, stream.random(out=self.numbers).reshape(-1))
        if preset.noise == "poisson":
            return
        background = stream.standard_normal(out=self.numbers)
        background *= row["exposure"] * row["background_rms"]
        image += background
        if not preset.corrected:
            # DeepLenseSim, simple_sim: np.random.poisson(image_real.clip(min=0)), over the noise already there.
            np.maximum(image, 0.0, out=image)
            self.quantile(counts, stream.random(out=self.numbers).reshape(-1))


@lru_cache(maxsize=8)
def _unit_lens(
    n_pixels: int, pixel_scale: float, q: float, phi: float, lens_x: float = 0.0, lens_y: float = 0.0
) -> NDArray[np.float64]:
    """Return (5, N²): x, y, the deflection of a lens of theta_E = 1 (it is linear in theta_E), and ones."""
    x, y = lensing.grid(n_pixels, pixel_scale, torch.float64)
    dx, dy = x - lens_x, y - lens_y
    ax, ay = lensing.sis(dx, dy, 1.0) if q == 1.0 else lensing.sie(dx, dy, 1.0, q, phi)
    basis = torch.stack([t.flatten() for t in (x, y, ax, ay, torch.ones_like(x))]).numpy()
    basis.flags.writeable = False
    return basis


@lru_cache(maxsize=8)
def _distance_basis(n_pixels: int, pixel_scale: float) -> NDArray[np.float64]:
    """Return (4, N²): x² + y², x, y, 1, of which r_k² = (x² + y²) - 2 x_k x - 2 y_k y + (x_k² + y_k²) is a product."""
    x, y = (t.flatten().numpy() for t in lensing.grid(n_pixels, pixel_scale, torch.float64))
    basis: NDArray[np.float64] = np.stack([x * x + y * y, x, y, np.ones_like(x)])
    basis.flags.writeable = False
    return basis


@lru_cache(maxsize=8)
def _psf_blocks(n: int, sigma: float) -> list[tuple[slice, slice, NDArray[np.float64]]]:
    """Return the PSF along one axis as blocks of a band matrix: (rows out, rows in, (out, in)), sigma in pixels."""
    taps = lensing.gaussian_psf(sigma, torch.float64).sum(-1).numpy()
    radius = len(taps) // 2
    band = np.zeros((n, n))
    for offset, tap in enumerate(taps):  # beyond the edge the image goes on as its edge pixels
        np.add.at(band, (np.arange(n), np.clip(np.arange(n) + offset - radius, 0, n - 1)), tap)
    blocks = []
    for start in range(0, n, 25):  # fewer operations the smaller the block, fewer calls the larger
        out = slice(start, min(start + 25, n))
        into = slice(max(start - radius, 0), min(out.stop + radius, n))
        blocks.append((out, into, np.ascontiguousarray(band[out, into])))
    return blocks


def _sersic(
    x: NDArray[np.float64], y: NDArray[np.float64], q: float, phi: float, n: float, R_e: float, core: float = 1e-6
) -> NDArray[np.float64]:
    """Return the Sérsic profile of brightness 1 at R_e, at places (x, y) in arcsec from its centre."""
    cos, sin = math.cos(phi), math.sin(phi)
    radius = np.sqrt(q * (cos * x + sin * y) ** 2 + (cos * y - sin * x) ** 2 / q + core**2) / R_e
    profile: NDArray[np.float64] = np.exp(lensing.light.b_n(n) * (1 - radius ** (1 / n)))
    return profile


def _flux(n: float, R_e: float) -> float:
    """Return the flux of a Sérsic profile of brightness 1 at R_e, arcsec² (Ciotti 1991)."""
    b = float(lensing.light.b_n(n))
    return 2 * math.pi * n * R_e**2 * math.exp(b) * math.pow(b, -2 * n) * math.gamma(2 * n)


def _scale(signal: NDArray[np.float64], sky: float, snr: float) -> float:
    """Return the factor that gives a signal (N, N) over a sky the signal-to-noise `snr`: sum of s²/(s + sky) is its square."""
    squared = signal * signal
    low, high = 1e-6, 1e12
    for _ in range(100):
        factor = math.sqrt(low * high)
        found = float((factor**2 * squared / (factor * signal + sky)).sum())
        low, high = (factor, high) if found < snr**2 else (low, factor)
    return factor


class _Renderer:
    """Scratch arrays for one image at a time; every array has the same shape for every image."""

    def __init__(self, observation: Observation) -> None:
        self.observation = observation
        n = self.n = observation.n_pixels
        axis = (np.arange(n) - (n - 1) / 2) * observation.pixel_scale
        self.x, self.y = axis[None, :], axis[:, None]
        self.distance = _distance_basis(n, observation.pixel_scale)
        self.blocks = _psf_blocks(n, observation.psf_sigma / observation.pixel_scale)
        self.u, self.v, self.t, *self.scratch = (np.empty(n * n) for _ in range(6))
        self.inverse = np.empty(25 * _BLOCK)

    def _rays(self, row: dict[str, float], points: NDArray[np.float64]) -> None:
        """Write to (u, v) where in the source each pixel's ray ends, along its axes in units of its elliptical radius."""
        # The source's own axes are linear in (x, y, alpha).
        cos, sin = math.cos(row["source_phi"]), math.sin(row["source_phi"])
        root_q = math.sqrt(row["source_q"])
        along, across = root_q / row["sersic_R_e"], 1.0 / (root_q * row["sersic_R_e"])
        axes = np.array([[cos * along, sin * along], [-sin * across, cos * across]])
        g1, g2, theta_E = row["gamma1"], row["gamma2"], row["theta_E"]
        macro = np.array(
            [[1 - g1, -g2, -theta_E, 0.0, -row["source_x"]], [-g2, 1 + g1, 0.0, -theta_E, -row["source_y"]]]
        )
        place = row.get("lens_x", 0.0), row.get("lens_y", 0.0)
        basis = _unit_lens(self.n, self.observation.pixel_scale, row["lens_q"], row["lens_phi"], *place)
        coefficients = axes @ macro
        np.matmul(coefficients[0], basis, out=self.u)
        np.matmul(coefficients[1], basis, out=self.v)
        if points.size:
            with np.errstate(divide="ignore", invalid="ignore"):
                self._point_masses(points, axes)
        if not math.isnan(row["rod_theta_E"]):
            self._rod(row, axes)

    def signal(self, row: dict[str, float], points: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """Write the lensed and blurred source to `out` (N, N), in the unit of the Sérsic amplitude; no sky."""
        self._rays(row, points)
        u, v, t = self.u, self.v, self.t
        n = row["sersic_n"]
        b = lensing.light.b_n(n)
        np.multiply(u, u, out=t)
        v *= v
        t += v
        if n == 1.5:
            np.cbrt(t, out=t)  # half the time of the power
        else:
            np.power(t, 0.5 / n, out=t)
        t *= -b
        t += b + math.log(row["sersic_amplitude"])
        np.exp(t, out=t)
        self._blurred(t.reshape(self.n, self.n), self.blocks, out)

    def _blurred(
        self,
        image: NDArray[np.float64],
        blocks: list[tuple[slice, slice, NDArray[np.float64]]],
        out: NDArray[np.float64],
    ) -> None:
        """Write the image (N, N) as the PSF of `blocks` blurs it to `out`; (u) is scratch."""
        half = self.u.reshape(self.n, self.n)
        for rows, into, band in blocks:
            np.matmul(band, image[into], out=half[rows])
        for columns, into, band in blocks:
            np.matmul(half[:, into], band.T, out=out[:, columns])

    def own_signal(
        self,
        row: dict[str, float],
        points: NDArray[np.float64],
        more: list[tuple[float, float, float, float]],
        out: NDArray[np.float64],
    ) -> None:
        """Write a source of several components and the lens galaxy's light, blurred, to `out` (N, N) in counts; no sky.

        The counts are such that the arcs' signal-to-noise over all pixels is the row's, their own noise and the sky's.
        """
        self._rays(row | {"source_q": 1.0, "sersic_R_e": 1.0, "source_phi": 0.0}, points)
        u, v, pixel = self.u, self.v, self.observation.pixel_scale
        n, R_e = row["sersic_n"], row["sersic_R_e"]
        light = _sersic(u, v, row["source_q"], row["source_phi"], n, R_e)
        for flux, size, x, y in more:
            light += flux * _flux(n, R_e) / _flux(1.0, size) * _sersic(u - x, v - y, 1.0, 0.0, 1.0, size)
        blocks = _psf_blocks(self.n, row["image_psf_sigma"] / pixel)
        self._blurred(light.reshape(self.n, self.n), blocks, out)
        out *= _scale(out, row["image_sky"], row["snr"])
        if row["light_peak"]:
            dx, dy = np.broadcast_arrays(self.x - row["lens_x"], self.y - row["lens_y"])
            q, phi, n, R_e = (row[f"light_{name}"] for name in ("q", "phi", "n", "R_e"))
            galaxy = _sersic(dx, dy, q, phi, n, R_e, core=pixel / 4)
            blurred = np.empty_like(out)
            self._blurred(galaxy, blocks, blurred)
            out += blurred * (row["light_peak"] * out.max() / blurred.max())

    def _point_masses(self, points: NDArray[np.float64], axes: NDArray[np.float64], guarded: bool = False) -> None:
        """Take the deflection of point masses (3, K), axes @ sum_k m_k (x - x_k, y - y_k)/r_k², from (u, v).

        That is (axes @ (x, y)) W - (U, V) with W = sum_k m_k/r_k² and (U, V) = sum_k m_k/r_k² axes @ (x_k, y_k).
        """
        theta_E, xk, yk = points
        mass = theta_E * theta_E
        square = np.stack([np.ones_like(xk), -2 * xk, -2 * yk, xk * xk + yk * yk], axis=1)
        moments = (mass, *(axes @ np.stack([xk, yk]) * mass))
        sums = self.scratch
        size = self.n * self.n
        step = max(self.inverse.size // len(xk), 1)
        for start in range(0, size, step):
            here = slice(start, min(start + step, size))
            width = here.stop - start
            inverse = self.inverse[: len(xk) * width].reshape(len(xk), width)
            np.matmul(square, self.distance[:, here], out=inverse)
            np.divide(1.0, inverse, out=inverse)
            if guarded:
                inverse[~np.isfinite(inverse)] = 0.0
            for moment, total in zip(moments, sums):
                np.matmul(moment, inverse, out=total[here])
        if not guarded and not math.isfinite(sums[0].sum()):
            # A mass on a pixel's very centre: no deflection by it there, as in the engine.
            self._point_masses(points, axes, guarded=True)
            return
        plane = self.t.reshape(self.n, self.n)
        for target, (a, b), total in zip((self.u, self.v), axes, sums[1:]):
            np.add(a * self.x, b * self.y, out=plane)
            self.t *= sums[0]
            target -= self.t
            target += total

    def _rod(self, row: dict[str, float], axes: NDArray[np.float64]) -> None:
        """Take the deflection of a uniform rod from (u, v): `lensing.rod`, ln[(z + L)/(z - L)] by its two parts."""
        cos, sin, length = math.cos(row["rod_phi"]), math.sin(row["rod_phi"]), row["rod_half_length"]
        x, y = self.x - row["rod_x"], self.y - row["rod_y"]
        shape = (self.n, self.n)
        p, s, far, along = (a.reshape(shape) for a in (self.t, *self.scratch))
        np.add(cos * x, sin * y, out=p)
        np.add(cos * y, -sin * x, out=s)
        np.multiply(s, s, out=along)
        np.add(p, length, out=far)
        p -= length
        far *= far
        far += along
        near = np.multiply(p, p, out=p)
        near += along
        np.add(far, near, out=along)
        along *= 0.5
        along -= 2 * length * length  # p² + s² - L²
        np.maximum(near, 1e-24, out=near)
        np.maximum(far, 1e-24, out=far)
        far /= near
        np.log(far, out=far)
        if not s.all():  # on the rod: the mean of the two sides, zero
            along[(s == 0) & (along <= 0)] = 1.0
        s *= 2 * length
        np.arctan2(s, along, out=s)
        scale = row["rod_theta_E"] ** 2 / (2 * length)
        for target, (a, b) in zip((self.u, self.v), axes @ np.array([[cos, -sin], [sin, cos]]) * scale):
            np.multiply(far, a / 2, out=near)
            np.multiply(s, b, out=along)
            near += along
            target -= near.ravel()
