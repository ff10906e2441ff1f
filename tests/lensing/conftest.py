from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from d4lens.lensing import grid


@pytest.fixture(scope="session")
def sky() -> tuple[Tensor, Tensor]:
    """The published images' grid: 150 pixels of 0.05 arcsec, float64."""
    return grid(150, 0.05, torch.float64)


@pytest.fixture(scope="session")
def gaussian() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """kappa and closed-form deflection of a Gaussian lens on n pixels of scale h."""

    def make(n: int, h: float, sigma: float, x0: float = 0.0, y0: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        x, y = grid(n, h, torch.float64)
        dx, dy = x - x0, y - y0
        r2 = dx * dx + dy * dy
        # alpha = 2 sigma^2 (1 - exp(-r^2/2 sigma^2)) / r, along r; its limit at the centre is alpha = r.
        scale = torch.where(r2 < 1e-20, 1.0, -2 * sigma**2 * torch.expm1(-r2 / (2 * sigma**2)) / r2.clamp_min(1e-20))
        return torch.exp(-r2 / (2 * sigma**2)), scale * dx, scale * dy

    return make
