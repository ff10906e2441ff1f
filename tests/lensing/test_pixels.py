import itertools
import math

import pytest
import referees
import torch
from lenstronomy.Util.util import make_grid

from d4lens.lensing import grid
from d4lens.observation import bin_pixels


@pytest.mark.parametrize("n", [8, 9, 149, 150, 151])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pixel_centres(n: int, dtype: torch.dtype) -> None:
    x, y = grid(n, 0.05, dtype)
    assert x.dtype == y.dtype == dtype
    assert x.shape == y.shape == (n, n)
    i, j = 1, n - 3
    expected = torch.tensor([(j - (n - 1) / 2) * 0.05, (i - (n - 1) / 2) * 0.05], dtype=torch.float64)
    torch.testing.assert_close(
        torch.stack((x[i, j], y[i, j])).double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0
    )
    # Antisymmetric to the last bit: nothing is half a pixel, or half an ulp, off.
    assert torch.equal(x, -x.flip(-1))
    assert torch.equal(y, -y.flip(-2))
    assert torch.equal(x, y.T)


def test_agrees_with_lenstronomy() -> None:
    for n in (10, 11):
        x, y = grid(n, 0.05, torch.float64)
        peer_x, peer_y = (torch.from_numpy(c).view(n, n) for c in make_grid(n, 0.05))
        torch.testing.assert_close(x, peer_x, rtol=0, atol=1e-15)
        torch.testing.assert_close(y, peer_y, rtol=0, atol=1e-15)


def test_default_dtype_is_torchs() -> None:
    assert grid(8, 0.1)[0].dtype == torch.get_default_dtype()


def test_bin_pixels_keeps_the_sum_and_the_place() -> None:
    image = torch.rand(2, 3, 12, 8, dtype=torch.float64)
    binned = bin_pixels(image, 4)
    assert binned.shape == (2, 3, 3, 2)
    torch.testing.assert_close(binned[1, 2, 2, 1], image[1, 2, 8:12, 4:8].sum())
    x, y = grid(32, 0.05, torch.float64)
    for coarse, fine in zip(grid(8, 0.2, torch.float64), (bin_pixels(x, 4) / 16, bin_pixels(y, 4) / 16)):
        torch.testing.assert_close(coarse, fine)


def test_supersampling_converges_to_the_pixel_integral() -> None:
    sigma, n, h = 0.1, 16, 0.1
    edge = (torch.arange(n + 1, dtype=torch.float64) - n / 2) * h
    axis = torch.erf(edge / (math.sqrt(2) * sigma)).diff() * sigma * math.sqrt(math.pi / 2) / h
    exact = axis[:, None] * axis
    errors = [
        (
            referees.supersample(lambda x, y: torch.exp(-(x * x + y * y) / (2 * sigma**2)), n, h, f, torch.float64)
            - exact
        )
        .abs()
        .max()
        for f in (1, 2, 4, 8)
    ]
    assert errors[0] > 0.04  # a pixel's centre is not its average
    for coarse, fine in itertools.pairwise(errors):
        assert 3.4 < coarse / fine < 4.6  # second order


def test_supersampling_keeps_leading_axes_and_gradients() -> None:
    a = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    image = referees.supersample(lambda x, y: a[:, None, None] * (x + 2 * y), 8, 0.1, 3, torch.float64)
    x, y = grid(8, 0.1, torch.float64)
    torch.testing.assert_close(
        image.detach(), torch.tensor([1.0, 2.0], dtype=torch.float64)[:, None, None] * (x + 2 * y)
    )
    (gradient,) = torch.autograd.grad(image[1, 2, 3], a)
    torch.testing.assert_close(gradient, torch.stack((torch.zeros_like(x[0, 0]), (x + 2 * y)[2, 3])))
