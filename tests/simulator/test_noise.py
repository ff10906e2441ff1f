import numpy as np
import pytest
from scipy.special import ndtri, pdtr, pdtrc
from scipy.stats import chisquare, poisson

from d4lens.simulator.noise import PoissonQuantile, poisson_quantile

RATES = (0.0, 0.01, 0.7, 5.0, 7.99, 8.0, 10.0, 11.3, 40.0, 163.7, 1000.0, 2e4, 9.9e4, 1.1e5, 1e7)
ROUNDING = 1e-15


def is_quantile(k, rate, u):
    """Whether P(X <= k-1) < u <= P(X <= k) to the rounding of a sum, from the tail that has the digits."""
    lower = np.where(u <= 0.5, pdtr(k, rate) >= u - ROUNDING, pdtrc(k, rate) <= 1 - u + ROUNDING)
    upper = np.where(u <= 0.5, pdtr(k - 1, rate) < u + ROUNDING, pdtrc(k - 1, rate) > 1 - u - ROUNDING)
    return lower & (upper | (k == 0))


@pytest.mark.parametrize("rate", RATES)
def test_counts_are_the_exact_quantile(rate):
    rng = np.random.default_rng(1)
    tails = 10.0 ** rng.uniform(-15, -1, 500)
    u = np.concatenate([rng.random(50_000), tails, 1 - tails, [0.5, 2**-53, 1 - 2**-53]])
    rates = np.full(u.shape, rate)
    assert is_quantile(poisson_quantile(rates, u), rates, u).all()


@pytest.mark.parametrize("rate", [8.0, 10.0, 40.0, 800.0, 5e4])
def test_counts_are_exact_where_it_is_hardest(rate):
    """Uniform numbers a hair either side of every step of the distribution function."""
    k = np.arange(max(0, int(rate - 6 * rate**0.5)), int(rate + 6 * rate**0.5))
    steps = pdtr(k, rate)
    for hair in (1e-13, 1e-9, 1e-6):
        u = np.concatenate([steps * (1 - hair), steps * (1 + hair)])
        rates = np.full(u.shape, rate)
        inside = (u > 1e-9) & (u < 1 - 1e-9)
        counts = poisson_quantile(rates[inside], u[inside])
        assert is_quantile(counts, rates[inside], u[inside]).all()
    assert counts.max() > counts.min()


def test_the_error_bound_of_the_expansion_holds():
    """The bound is what the exactness rests on: no pixel taken for sure may be wrong, and few may be unsure."""
    rng = np.random.default_rng(2)
    rates = 10 ** rng.uniform(np.log10(8), 5, 400_000)
    u = rng.random(rates.shape)
    quantile = PoissonQuantile(rates.size)
    counts = rates.copy()
    quantile(counts, u)
    assert is_quantile(counts, rates, u).all()
    sky = np.full(100_000, 10.0)
    quantile = PoissonQuantile(sky.size)
    quantile(sky, rng.random(sky.shape))
    assert quantile._bool[0].mean() < 0.01


def test_the_normal_deviate_is_good_to_a_millionth():
    u = np.concatenate([np.linspace(0, 1, 100_001)[1:-1], 10.0 ** np.arange(-15, -3), 1 - 10.0 ** np.arange(-15, -3)])
    quantile = PoissonQuantile(u.size)
    w, a, p = quantile._f32[:3]
    quantile._normal(u, w, a, p)
    np.testing.assert_allclose(w, ndtri(u), atol=1e-6, rtol=1e-7)


@pytest.mark.parametrize("rate", [0.3, 3.0, 10.0, 60.0, 800.0])
def test_counts_have_the_poisson_distribution(rate):
    n = 200_000
    counts = poisson_quantile(np.full(n, rate), np.random.Generator(np.random.Philox(5)).random(n))
    k = np.arange(int(poisson.ppf(1e-3, rate)), int(poisson.ppf(1 - 1e-3, rate)) + 1)
    seen = np.array([(counts < k[0]).sum(), *((counts == i).sum() for i in k), (counts > k[-1]).sum()])
    expected = n * np.array([poisson.cdf(k[0] - 1, rate), *poisson.pmf(k, rate), poisson.sf(k[-1], rate)])
    wanted = expected > 5
    seen = np.append(seen[wanted], seen[~wanted].sum())
    expected = np.append(expected[wanted], expected[~wanted].sum())
    if expected[-1] == 0:
        seen, expected = seen[:-1], expected[:-1]
    assert chisquare(seen, expected).pvalue > 1e-3


def test_counts_rise_with_the_rate_at_one_seed():
    u = np.random.default_rng(3).random((50, 50))
    low = np.full(u.shape, 10.0)
    high = low + np.linspace(0, 200, u.size).reshape(u.shape)
    a, b = poisson_quantile(low, u), poisson_quantile(high, u)
    assert (b >= a).all()
    assert a.shape == u.shape
    assert b[0, 0] == a[0, 0]
    assert (low == 10.0).all()  # the rate is not written to
