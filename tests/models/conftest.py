from collections.abc import Callable

import pytest
import torch

from d4lens.models.batch import LensBatch
from d4lens.observation import Observation


def observe(n_pixels: int) -> Observation:
    """An image of 7.5 arcsec on `n_pixels`."""
    return Observation(n_pixels, 7.5 / n_pixels, 0.08625, 40.0)


def lenses(n_pixels: int, size: int = 2, dtype: torch.dtype = torch.float32) -> LensBatch:
    """Counts of sky and a blob off the centre, a residual and a significance of noise, and fits with every parameter non-zero."""
    generator = torch.Generator().manual_seed(size * n_pixels)
    axis = torch.linspace(-1, 1, n_pixels, dtype=torch.float64)
    blob = 300 * torch.exp(-8 * ((axis - 0.3) ** 2 + (axis[:, None] + 0.2) ** 2))
    counts = torch.poisson((40 + blob).expand(size, -1, -1), generator=generator)
    fit = torch.tensor([[1.2, 0.11, -0.05, 0.2, -0.1, 0.2, 0.1]], dtype=torch.float64).repeat(size, 1)
    return LensBatch(
        counts=counts.to(dtype),
        residual=torch.randn(size, n_pixels, n_pixels, generator=generator, dtype=torch.float64).to(dtype),
        significance=3 * torch.randn(size, n_pixels, n_pixels, generator=generator, dtype=torch.float64).to(dtype),
        fit=(fit * torch.linspace(0.8, 1.1, size, dtype=torch.float64)[:, None]).to(dtype),
    )


@pytest.fixture
def observation() -> Callable[[int], Observation]:
    return observe


@pytest.fixture
def batch() -> Callable[..., LensBatch]:
    return lenses
