"""Poisson counts as the exact quantile of a uniform number: one number a pixel, whatever the rate.

Inversion keeps two images of one noise seed together: where their rates agree so do their counts, and elsewhere the
counts rise with the rate. A rejection method would lose step at the first pixel that differs.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, pdtr, pdtrc

# |expansion - quantile| <= _ERROR (1 + w⁴) / rate² for rate >= _LOW_RATE and |w| <= _FAR, w the normal deviate of the
# uniform number: measured 0.027. Single precision adds _ROUNDING (10 sqrt(rate) + rate), measured to be a fifth of it.
# A test holds the sum. Pixels outside, and rates beyond _HIGH_RATE, are settled by the distribution function alone.
_ERROR, _ROUNDING, _LOW_RATE, _HIGH_RATE, _FAR = 0.04, 4e-7, 8.0, 1e5, 4.0
# Giles 2012, "Approximating the erfinv function", single precision: sqrt(2) erfinv(x) = x p(-log(1 - x²) - 2.5) where
# the argument of p is below 2.5.
_ERFINV = np.sqrt(2) * np.array(
    [
        *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
        *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
    ]
)
_CENTRAL = np.exp(-5.0) / 4  # u (1 - u) = (1 - x²)/4 above which that holds


class PoissonQuantile:
    """`poisson_quantile` for arrays of one size, with scratch arrays of its own: no allocation; one thread at a time.

    Parameters
    ----------
    size : int
        Numbers in an array.
    """

    def __init__(self, size: int) -> None:
        self._f64 = np.empty(size)
        self._f32 = [np.empty(size, np.float32) for _ in range(7)]
        self._bool = [np.empty(size, bool) for _ in range(2)]

    def __call__(self, rate: NDArray[np.float64], u: NDArray[np.float64]) -> None:
        """Replace `rate` by the counts; both float64, flat and contiguous."""
        w, w2, root, inverse, x, term, even = self._f32
        unsure, other = self._bool
        self._normal(u, w, w2, term)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            np.copyto(even, rate, casting="same_kind")
            np.sqrt(even, out=root)
            np.divide(1, root, out=inverse)
            np.multiply(w, w, out=w2)
            np.multiply(root, w, out=x)
            x += even  # rate + root w
            # Orders 3 to 1 by Horner in 1/root. Third: (2684 w - 548 w³ - 207 w⁵) / 155520
            np.multiply(w2, -207 / 155520, out=term)
            term -= 548 / 155520
            term *= w2
            term += 2684 / 155520
            term *= w
            term *= inverse
            np.multiply(w2, 3 / 810, out=even)  # second: (3 w⁴ + 7 w² - 16) / 810
            even += 7 / 810
            even *= w2
            even -= 16 / 810
            term += even
            term *= inverse
            np.multiply(w2, -1 / 72, out=even)  # first: -(w³ + 2 w) / 72
            even -= 2 / 72
            even *= w
            term += even
            term *= inverse
            x += term
            np.multiply(w2, 1 / 6, out=term)  # zeroth: (w² + 2) / 6
            term += 1 / 3
            x += term
            # The largest error: _ERROR (1 + w⁴) / rate² + _ROUNDING root (root + 10)
            inverse *= inverse
            np.multiply(w2, inverse, out=term)
            term *= term
            inverse *= inverse
            term += inverse
            term *= _ERROR
            np.add(root, 10, out=even)
            even *= root
            even *= _ROUNDING
            term += even
            np.rint(x, out=even)
            np.subtract(x, even, out=inverse)
            np.abs(inverse, out=inverse)
            np.greater(inverse, term, out=unsure)
            np.logical_not(unsure, out=unsure)  # NaN is unsure
            unsure |= np.less(rate, _LOW_RATE, out=other)
            unsure |= np.greater(rate, _HIGH_RATE, out=other)
            unsure |= np.greater(w2, _FAR**2, out=other)
        where = np.flatnonzero(unsure)
        np.floor(x, out=x)
        settled = _settle(rate[where], u[where], even[where])
        rate[:] = x
        rate[where] = settled

    def _normal(
        self, u: NDArray[np.float64], w: NDArray[np.float32], a: NDArray[np.float32], p: NDArray[np.float32]
    ) -> None:
        """Write the normal deviate of u to `w`, to 1e-6; `a` and `p` are scratch."""
        f64, tail = self._f64, self._bool[0]
        np.multiply(u, u, out=f64)
        np.subtract(u, f64, out=f64)
        np.less(f64, _CENTRAL, out=tail)
        with np.errstate(divide="ignore", invalid="ignore"):
            np.multiply(f64, 4, out=a, casting="same_kind")  # 1 - x² of x = 2u - 1, no cancellation
            np.log(a, out=a)
            np.negative(a, out=a)
            a -= 2.5
            np.multiply(a, _ERFINV[0], out=p)
            for coefficient in _ERFINV[1:-1]:
                p += coefficient
                p *= a
            p += _ERFINV[-1]
            np.subtract(u, 0.5, out=w, casting="same_kind")
            w *= 2
            w *= p
        i = np.flatnonzero(tail)
        w[i] = ndtri(u[i])


def poisson_quantile(rate: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the smallest k with P(X <= k) >= u for X ~ Poisson(rate).

    Exact up to the rounding of the distribution functions (1e-15 in probability). The quantile of the continuous distribution
    Q(x, rate) (Giles 2016, ACM Trans. Math. Softw. 42, 7) is expanded in powers of rate^(-1/2), here to the third beyond the constant.
    k is floor(x) wherever x lies farther from an integer than the expansion, in single precision, can err. The rest, some three pixels
    in a thousand, is settled by the incomplete gamma function.

    Parameters
    ----------
    rate : ndarray
        Finite, at least 0.
    u : ndarray
        In [0, 1), of the same shape.

    Returns
    -------
    ndarray
        k as float64, of the same shape.
    """
    counts = np.array(rate, np.float64).ravel()
    PoissonQuantile(counts.size)(counts, np.ascontiguousarray(u, np.float64).ravel())
    return counts.reshape(np.shape(rate))


def _too_few(k: NDArray[np.float64], rate: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tell where P(X <= k) < u, so that the quantile lies above k; taken in the smaller of the two tails."""
    result = np.empty(k.shape, bool)
    low = u <= 0.5
    result[low] = pdtr(k[low], rate[low]) < u[low]
    high = ~low
    result[high] = pdtrc(k[high], rate[high]) > 1 - u[high]
    return result


def _settle(rate: NDArray[np.float64], u: NDArray[np.float64], nearest: NDArray[np.float32]) -> NDArray[np.float64]:
    """Find the quantile by the distribution function: `nearest` or one less where the expansion holds."""
    k = nearest.astype(np.float64)
    low = rate < _LOW_RATE
    far = ~low & ((rate > _HIGH_RATE) | (np.abs(ndtri(u)) > 0.999 * _FAR))
    i = np.flatnonzero(~low & ~far)
    k[i] -= ~_too_few(k[i] - 1, rate[i], u[i])
    i = np.flatnonzero(low)
    k[i] = _sum(rate[i], u[i])
    i = np.flatnonzero(far)
    k[i] = _walk(rate[i], u[i])
    return k


def _sum(rate: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the quantile at a low rate, by adding up probabilities."""
    k = np.zeros(rate.shape)
    i = np.arange(k.size)
    p = np.exp(-rate)
    below = p.copy()
    n = 0
    # 1 - 2^-53 is the largest u; a sum that rounding keeps below it ends at a term too small to matter.
    while True:
        more = (below < u) & ((p > 1e-18) | (n < rate))
        if not more.any():
            return k
        i = i[more]
        rate, u, p, below = (a[more] for a in (rate, u, p, below))
        n += 1
        k[i] = n
        p = p * (rate / n)
        below = below + p


def _walk(rate: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the quantile by single steps from the normal approximation."""
    k: NDArray[np.float64] = np.maximum(np.floor(rate + np.sqrt(rate) * np.clip(ndtri(u), -9, 9)), 0.0)
    moving = np.arange(k.size)
    while moving.size:  # down while one less would do
        moving = moving[k[moving] > 0]
        moving = moving[~_too_few(k[moving] - 1, rate[moving], u[moving])]
        k[moving] -= 1
    moving = np.arange(k.size)
    while moving.size:  # up while too few
        moving = moving[_too_few(k[moving], rate[moving], u[moving])]
        k[moving] += 1
    return k
