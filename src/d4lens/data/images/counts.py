"""One image's array: held to a square of finite numbers, its photon counts recovered.

The published pixels are photon counts in disguise: x = (k - k_min)/(k_max - k_min) with integer k, so that the smallest
step between distinct values is 1/(k_max - k_min) and every count comes back exactly but for k_min, which the sky's known
mean gives (fitted to genuine images of the set of arXiv:1909.07346).

A file format's levels are a lattice too. Where they are finer than photons, the photons' lattice lies within theirs.
Where they are coarser, the noise tells: the variance of photons grows by one with their mean, that of levels by the
levels that a photon makes (the photon transfer curve, Janesick 2007).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4lens.errors import D4LensError

Array = NDArray[Any]
MIN_SIDE = 8
MIN_LEVELS = 8
MAX_COUNT = np.iinfo(np.uint16).max
COUNTS, NORMALISED = "counts", "normalised"
FULL_SCALE = 1000.0
"""Photons that the brightest pixel is taken for where an image has lost its photon scale."""
DARK_SHARE = 0.1
"""Share of an image's pixels that `dark_sky` measures."""

_LIGHT = 0.2  # counts of the arcs' light in the darkest tenth of the published set's fields, in the mean of all angles
_GAIN, _SKY = (0.8, 1.3), (0.6, 1.6)  # of a lattice of photons, whose gain is 1: see `Noise.is_photons`
_CLEARLY_FEWER = 0.97  # a lattice that rounding to one of almost as many levels blurs cannot be told from chance
_THIRD = 0.3  # of a step: a wrong lattice that shares a factor with the levels strays by a third or more
_DIFFERENCE = np.array([1.0, -3.0, 3.0, -1.0])
_FEWEST = 64  # third differences without which nothing is said of their growth
_POWER = float(_DIFFERENCE @ _DIFFERENCE)
_SHARED = float(((np.correlate(_DIFFERENCE, _DIFFERENCE, "full") / _POWER) ** 2).sum() ** 2)


@dataclass(frozen=True)
class Counts:
    """What an image's values say of photons.

    Attributes
    ----------
    is_counts: whether the values are photon counts.
    k: (H, W) int32 photon counts, sky included; what they would be where the values lie on levels that are no photons;
        `k_min` where there are no data; empty where they lie on no lattice.
    n_levels: number of steps from the faintest to the brightest pixel; 0 where the values lie on no lattice.
    k_min: the faintest pixel's count.
    noise: how the values on the lattice scatter.
    """

    is_counts: bool
    k: NDArray[np.int32]
    n_levels: int = 0
    k_min: int = 0
    noise: "Noise | None" = None

    @property
    def sky_variance(self) -> float:  # numpydoc ignore=RT01
        """Variance of the sky; for photons its mean, whatever k_min is."""
        return self.noise.variance if self.noise else 0.0


@dataclass(frozen=True)
class Noise:
    """How an image's values scatter.

    Attributes
    ----------
    mean, variance: of the sky, by the darkest tenth of the image; `variance_sigma` is the variance's standard deviation
        over the variance.
    gain: by how much the variance grows with the mean, the values' units that one photon makes; `gain_sigma` is its
        standard deviation.
    """

    mean: float
    variance: float
    variance_sigma: float
    gain: float
    gain_sigma: float

    def is_photons(self, sky: float, doubtful: bool) -> bool:
        """Say whether values on a lattice are photons rather than a file format's levels.

        A lattice that is `doubtful`, such as one of a format's own number of levels, is believed only where the sky's
        variance is its mean and the gain not below 1. A PSF narrower than a pixel raises `gain` but not the sky's variance.

        Parameters
        ----------
        sky : float
            The expected mean of the sky in counts per pixel.
        doubtful : bool
            Whether the lattice may be the format's.

        Returns
        -------
        bool
        """
        if self.gain + 4 * self.gain_sigma < _GAIN[0]:
            return False
        if doubtful:
            return self.gain + 4 * self.gain_sigma > 1 and abs(self.variance / sky - 1) < 3.5 * self.variance_sigma
        return self.gain - 4 * self.gain_sigma < _GAIN[1] or _SKY[0] * sky < self.variance < _SKY[1] * sky

    def is_coarser(self, sky: float) -> bool:
        """Say whether both the gain and the variance of the sky tell that a level is more than a photon.

        Levels whose ends are masked do not show that they are a format's own number.

        Parameters
        ----------
        sky : float
            The expected mean of the sky in counts per pixel.

        Returns
        -------
        bool
        """
        return self.gain + 4 * self.gain_sigma < 1 and self.variance < (1 - 3.5 * self.variance_sigma) * sky


def as_image(array: Array, where: str) -> Array:
    """Return the image in an array.

    Parameters
    ----------
    array : ndarray
        (N, N) or (1, N, N).
    where : str
        What it is of, for the message of an error.

    Returns
    -------
    ndarray
        (N, N).

    Raises
    ------
    D4LensError
        If it is not square, smaller than 8 pixels, not finite or constant.
    """
    image = array[0] if array.ndim == 3 and len(array) == 1 else array
    if image.ndim != 2 or image.shape[0] != image.shape[1] or len(image) < MIN_SIDE:
        raise D4LensError(
            f"{where} has shape {array.shape}; one square image is (N, N) or (1, N, N) with N of {MIN_SIDE} or more"
        )
    low, high = image.min(), image.max()  # NaN comes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = np.argwhere(~np.isfinite(image))
        row, column = bad[0]
        raise D4LensError(
            f"{where} holds {len(bad)} pixels that are NaN or infinite, the first in row {row}, column {column}"
        )
    if low == high:
        raise D4LensError(f"{where} is constant: every pixel is {low:g}; it holds no image")
    return image


def recover_counts(image: Array, sky: float) -> Counts:
    """Return the photon counts behind an image's values.

    Parameters
    ----------
    image : ndarray, (H, W)
        NaN where there are no data, else finite and not constant; any linear rescaling of counts. float64 recovers any
        number of levels up to 65535; float32, whose rounding blurs the lattice, is held to a tolerance that grows with
        the levels. A file format may have rounded the values to levels; those finer than photons lose nothing. Values
        that are whole numbers already and reach above 1 are taken for the counts themselves, unless their noise says
        that they are levels.
    sky : float
        Mean sky counts per pixel; 0 says that none is known, and every lattice is then taken for photons.

    Returns
    -------
    Counts
        `is_counts` is False where the values are on no lattice of 8 to 65535 levels, or on one that is not the photons'.

    Raises
    ------
    D4LensError
        If the image is constant, or infinite somewhere.

    Notes
    -----
    k_min = rint(sky - c), c the mean of the darkest tenth above the minimum, less the light of the arcs there. On
    7,500 simulated lenses, 5,000 of them at every angle, it was never wrong; a field cut to 130 of 150
    pixels holds too little sky, and there a fit has to decide.
    """
    seen = ~np.isnan(image)
    values = image[seen]
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    if not np.isfinite(high - low) or low == high:
        raise D4LensError("an image that is constant or not finite holds no counts")
    if image.dtype.kind in "iu" or bool(high > 1 and (values == np.rint(values)).all()):
        return _whole_counts(values, seen, int(low), int(high), sky)
    values = values.astype(np.float64)
    if low != 0 or high != 1:
        values = (values - float(low)) / (float(high) - float(low))
    epsilon = float(np.finfo(image.dtype).eps)
    lattice = _lattice(values, epsilon * max(1.0, abs(float(low)) / float(high - low)))
    return _counts_of(values, seen, lattice, sky)


def _whole_counts(values: Array, seen: NDArray[np.bool_], low: int, high: int, sky: float) -> Counts:
    if low < 0 or high > MAX_COUNT or high - low < MIN_LEVELS:
        return no_counts()
    rank = (values.astype(np.int64) - low).astype(np.int32)
    noise = _noise_of(rank, seen)
    own_sky = max(noise.mean + low - _LIGHT, 1e-9)
    # From 0 up: a format's levels, or counts whose faintest was subtracted.
    subtracted = low == 0 and sky - own_sky > 0.5 and abs(noise.variance - sky) < abs(noise.variance - own_sky)
    if sky == 0 or (noise.is_photons(own_sky, low == 0) and not subtracted):
        return Counts(True, _laid_out(rank, seen) + np.int32(low), high - low, low, noise)
    return _counts_of(rank / (high - low), seen, (rank, high - low), sky)


def _counts_of(
    values: NDArray[np.float64],
    seen: NDArray[np.bool_],
    lattice: tuple[NDArray[np.int32], int] | None,
    sky: float,
) -> Counts:
    """Find the counts on the lattice of `values` in [0, 1] (those of the pixels `seen`), or on the photons' within it."""
    finer = _rounded_lattice(values, lattice[1] if lattice else None) if sky else None
    if finer is None and lattice is None:
        return no_counts()
    rank, n_levels = finer or lattice  # type: ignore[misc]  # one of them is there
    noise = _noise_of(rank, seen)
    k_min = max(0, round(sky - (noise.mean - _LIGHT)))
    # Levels little finer than photons show several lattices.
    doubtful = is_format(n_levels) if finer is None else _strays(np.unique(values) * n_levels) > _THIRD
    is_counts = sky == 0 or (noise.is_photons(sky, doubtful) and not noise.is_coarser(sky))
    return Counts(is_counts, _laid_out(rank, seen) + np.int32(k_min), n_levels, k_min, noise)


def _laid_out(rank: NDArray[np.int32], seen: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Put the ranks of the pixels seen into their places (H, W), 0 elsewhere."""
    image = np.zeros(seen.shape, np.int32)
    image[seen] = rank
    return image


def _noise_of(rank: NDArray[np.int32], seen: NDArray[np.bool_]) -> Noise:
    return measure_noise(np.where(seen, _laid_out(rank, seen), np.nan))


def is_format(n_levels: int) -> bool:
    """Tell whether a whole number of bits, 8 or more, has so many steps.

    Parameters
    ----------
    n_levels : int
        Steps from the lowest level to the highest.

    Returns
    -------
    bool
        Whether it has.
    """
    return n_levels >= 255 and (n_levels + 1).bit_count() == 1


def _lattice(values: NDArray[np.float64], epsilon: float) -> tuple[NDArray[np.int32], int] | None:
    """Whole-numbered ranks and the number of levels of values in [0, 1] that carry a relative rounding error epsilon."""
    few = values.flat[:: max(1, values.size // 512)]  # where a guess fails, it fails here already
    steps = np.diff(np.sort(values, axis=None))
    step = steps[steps > 16 * epsilon].min(initial=1.0)
    # Neighbours one count apart may be missing in a small image: the step found is then a few lattice steps.
    for multiple in range(1, 5):
        guess = multiple / step
        blur = 2 * epsilon * guess**2 / multiple
        for n in range(max(MIN_LEVELS, round(guess - blur)), min(MAX_COUNT, round(guess + blur)) + 1):
            # Below a tenth of a step random values would pass; above 4 n epsilon a true lattice never strays.
            tolerance = min(max(1e-9, 4 * n * epsilon), 0.1)
            if _strays(few * n) > tolerance:
                continue
            scaled = values * n
            if _strays(scaled) <= tolerance:
                return np.rint(scaled).astype(np.int32), n
    return None


def _rounded_lattice(values: NDArray[np.float64], n_levels: int | None) -> tuple[NDArray[np.int32], int] | None:
    """Return the coarsest lattice of clearly fewer steps than `n_levels` that rounded values in [0, 1] still show.

    None where the rounding is unknown.

    Rounding to n_levels moves a step of n by less than n / (2 n_levels). A wrong n that shares a factor with n_levels
    strays by as much, and by a third or more.
    """
    distinct = np.unique(values)
    few = distinct[:: max(1, len(distinct) // 64)]
    tries = np.arange(MIN_LEVELS, max(MIN_LEVELS, round(_CLEARLY_FEWER * (n_levels or MAX_COUNT))))
    allowed = np.maximum(_THIRD, (tries - 0.5) / (2 * n_levels) if n_levels else 0.0) + np.zeros(len(tries))
    for block in np.array_split(np.arange(len(tries)), 1 + len(tries) // 4096):
        scaled = np.multiply.outer(tries[block], few)
        for i in block[np.abs(scaled - np.rint(scaled)).max(1, initial=0.0) <= allowed[block]].tolist():
            n, strays = int(tries[i]), _strays(distinct * tries[i])
            # Of so many values at random, as many as were tried, one chance in a million.
            if strays <= allowed[i] and len(distinct) * np.log(2 * strays + 1e-9) < np.log(1e-6 / len(tries)):
                return np.rint(values * n).astype(np.int32), n
    return None


def _strays(scaled: NDArray[np.float64]) -> float:
    """How far the value farthest from a whole number is from it."""
    return float(np.abs(scaled - np.rint(scaled)).max())


def measure_noise(image: Array) -> Noise:
    """Measure the noise of an image in its values' units.

    Parameters
    ----------
    image : ndarray, (H, W)
        At least 8 pixels a side; NaN where there are no data.

    Returns
    -------
    Noise
        With an infinite `gain_sigma` where too few pixels have neighbours with data.
    """
    return Noise(*dark_sky(image), *_photon_transfer(image.astype(np.float64)))


def dark_sky(image: Array) -> tuple[float, float, float]:
    """Measure the darkest tenth of an image, which holds the sky with the least of other light.

    Of blocks of a fifteenth of a side, those darkest on one colour of a chessboard are measured on the other, so that
    the choice biases neither. Blocks that are constant do not count, nor do those without data in most of their pixels.

    Parameters
    ----------
    image : ndarray, (H, W)
        NaN where there are no data; two pixels at least have some.

    Returns
    -------
    mean, variance : float
        In the image's units.
    variance_sigma : float
        Standard deviation of the variance over the variance.
    """
    side = max(2, min(image.shape) // 15)
    rows, columns = (length // side for length in image.shape)
    top, left = (image.shape[0] - rows * side) // 2, (image.shape[1] - columns * side) // 2
    inner = image[top : top + rows * side, left : left + columns * side].astype(np.float64)
    blocks = inner.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side * side)
    white = (np.indices((side, side)).sum(0) % 2 == 0).ravel()
    gaps = bool(np.isnan(blocks).any())
    if gaps:
        enough = np.all(
            [(~np.isnan(b)).sum(1) >= max(2, b.shape[1] / 2) for b in (blocks[:, white], blocks[:, ~white])], 0
        )
        blocks = blocks[enough]
        if not len(blocks):  # data here and there alone
            blocks = image[~np.isnan(image)].astype(np.float64)[None]
            white = np.arange(blocks.size) % 2 == 0
    # The two differ in the order of their sums.
    mean_of, variance_of = (np.nanmean, np.nanvar) if gaps else (np.mean, np.var)
    alive = np.nanmax(blocks, axis=1) > np.nanmin(blocks, axis=1)
    blocks = blocks[alive] if alive.any() else blocks
    halves = blocks[:, white], blocks[:, ~white]
    take = max(1, round(DARK_SHARE * len(blocks)))
    chosen = [there[np.argsort(mean_of(here, axis=1), kind="stable")[:take]] for here, there in (halves, halves[::-1])]
    means = [mean_of(half) for half in chosen]
    # Within blocks: the sky's own slope is no noise.
    variances = [
        variance_of(half, axis=1, ddof=1).mean() if half.shape[1] > 1 else variance_of(half) for half in chosen
    ]
    measured = sum(int((~np.isnan(half)).sum()) for half in chosen)
    return float(np.mean(means)), float(np.mean(variances)), (2 / measured) ** 0.5


def _photon_transfer(image: NDArray[np.float64]) -> tuple[float, float]:
    """Fit by how much an image's variance grows with its mean; the slope and its standard deviation.

    Third differences along both axes leave nothing of what a PSF of a pixel or more has blurred, so that their square
    is the noise alone. Those that reach a pixel without data are left out.
    """
    noise = _filtered(image, _DIFFERENCE) ** 2 / _POWER**2
    mean = _filtered(image, np.square(_DIFFERENCE)) / _POWER**2
    if not (whole := np.isfinite(noise)).all():
        noise, mean = noise[whole], mean[whole]
        if noise.size < _FEWEST:
            return 1.0, np.inf
    design = np.stack([np.ones(mean.size), mean.ravel()], 1)
    # A sky of no less than the mean light above it, to set out from: the weights follow the line found.
    above = design[:, 1] - design[:, 1].min()
    expected = noise.mean() * (above + above.mean()) + 1e-12
    for _ in range(4):
        weight = (expected.mean() / expected) ** 2
        line = np.linalg.lstsq((design.T * weight) @ design, (design.T * weight) @ noise.ravel(), rcond=None)[0]
        expected = np.maximum(design @ line, 0.05 * noise.mean() + 1e-12)
    weight = 1 / expected**2
    normal = (design.T * weight) @ design
    # A squared normal deviate has twice its mean squared as variance; the filter makes _SHARED of them one.
    covariance = 2 * _SHARED * np.linalg.pinv(normal, hermitian=True)
    return float(line[1]), float(covariance[1, 1]) ** 0.5


def _filtered(image: NDArray[np.float64], taps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the image correlated with `taps` along both axes, where they fit in."""
    for axis in (0, 1):
        image = np.lib.stride_tricks.sliding_window_view(image, len(taps), axis) @ taps
    return image


def no_counts() -> Counts:
    """Return what an image without a lattice of counts says of photons.

    Returns
    -------
    Counts
        Of no levels, its `k` empty.
    """
    return Counts(False, np.zeros((0, 0), np.int32))


def normalised(pixels: Array) -> NDArray[np.float32]:
    """Scale an image from 0 to 1.

    Parameters
    ----------
    pixels : ndarray
        (H, W), NaN where there are no data.

    Returns
    -------
    ndarray
        (H, W) float32.

    Raises
    ------
    D4LensError
        If it is constant.
    """
    low, high = np.nanmin(pixels), np.nanmax(pixels)
    if low == high:
        raise D4LensError("it is constant within the field of view once binned; it holds no image")
    scaled: NDArray[np.float32] = ((pixels - low) / (high - low)).astype(np.float32)
    return scaled
