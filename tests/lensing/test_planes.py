"""The splat, its adjoint and the inversion: exact sums, exact adjoints, right sources, gradients that reach the lens."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import grid_sample

from d4lens import lensing
from d4lens.lensing import grid, to_image_plane, to_source_plane


def lens(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """beta of an SIE with shear."""
    (ax, ay), (sx, sy) = lensing.sie(x, y, 1.1, 0.8, 0.3), lensing.shear(x, y, 0.05, -0.03)
    return x - ax - sx, y - ay - sy


def galaxy(x: Tensor, y: Tensor) -> Tensor:
    return lensing.sersic(x, y, 1.0, 0.3, 1.0, 0.7, 0.5, 0.1, 0.05)


@pytest.fixture(scope="module")
def scene() -> dict[str, Any]:
    """A smooth source, its image on 100 pixels of 0.05 arcsec, and the source as its own grid has it."""
    beta_x, beta_y = lens(*grid(100, 0.05, torch.float64))
    half_width, n = 1.0, 50
    xs, ys = grid(n, 2 * half_width / n, torch.float64)
    return {
        "rays": (beta_x, beta_y),
        "image": galaxy(beta_x, beta_y),
        "truth": galaxy(xs, ys),
        "n": n,
        "half_width": half_width,
    }


def relative(source: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    where = torch.ones_like(truth, dtype=torch.bool) if where is None else where
    return ((source - truth)[where].norm() / truth[where].norm()).item()


@given(st.integers(8, 13), st.integers(1, 12), st.integers(1, 12), st.floats(0.2, 3.0), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_referee_15_adjoint_flux_and_constant(n: int, rows: int, columns: int, half_width: float, seed: int) -> None:
    """For any rays, inside the source grid, at its rim and beyond it."""
    torch.manual_seed(seed)
    beta_x, beta_y = 1.5 * torch.randn(2, 2, rows, columns, dtype=torch.float64)
    source, residual = torch.randn(2, n, n, dtype=torch.float64), torch.randn(2, rows, columns, dtype=torch.float64)
    splat, coverage = to_source_plane(residual, beta_x, beta_y, n, half_width, normalise=False)
    seen = to_image_plane(source, beta_x, beta_y, half_width)
    left, right = (seen * residual).sum(), (source * splat).sum()
    assert (left - right).abs() <= 1e-12 * (seen * residual).abs().sum().clamp_min(1e-300)
    # Flux: every ray within the outermost pixel centres arrives whole.
    reach = half_width * (1 - 1 / n)
    inside = (beta_x.abs() <= reach) & (beta_y.abs() <= reach)
    alone = torch.where(inside, residual, 0)
    total = to_source_plane(alone, beta_x, beta_y, n, half_width, normalise=False)[0].sum((-2, -1))
    assert (total - alone.sum((-2, -1))).abs().max() <= 1e-12 * alone.abs().sum().clamp_min(1)
    assert (coverage >= 0).all()
    # A constant stays itself wherever a ray lands, and nothing is anywhere else.
    constant, covered = to_source_plane(torch.full_like(residual, 3.7), beta_x, beta_y, n, half_width)
    assert torch.equal(coverage, covered)
    assert ((constant[covered > 0] - 3.7).abs() < 1e-12).all()
    assert (constant[covered == 0] == 0).all()


def test_forward_lens_is_grid_sample_with_zeros() -> None:
    source = torch.rand(3, 11, 11, dtype=torch.float64)
    beta_x, beta_y = 1.2 * torch.randn(2, 3, 30, 20, dtype=torch.float64)
    ours = to_image_plane(source, beta_x, beta_y, 1.3)
    where = torch.stack((beta_x, beta_y), -1) / 1.3
    theirs = grid_sample(source[:, None], where, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    assert (ours == 0).any()


def test_pixel_centres_are_those_of_grid() -> None:
    n, half_width = 9, 0.7
    x, y = grid(n, 2 * half_width / n, torch.float64)
    source = torch.rand(n, n, dtype=torch.float64)
    torch.testing.assert_close(to_image_plane(source, x, y, half_width), source, rtol=0, atol=1e-13)
    back, coverage = to_source_plane(source, x, y, n, half_width)
    torch.testing.assert_close(back, source, rtol=0, atol=1e-13)
    torch.testing.assert_close(coverage, torch.ones_like(coverage), rtol=0, atol=1e-13)
    # A plane is interpolated exactly between them.
    px, py = 0.5 * torch.rand(2, 5, 5, dtype=torch.float64) - 0.2
    torch.testing.assert_close(to_image_plane(2 * x - 3 * y, px, py, half_width), 2 * px - 3 * py)


def test_source_is_recovered_through_the_true_lens(scene: dict[str, Any]) -> None:
    rays, image, truth, n, w = (scene[k] for k in ("rays", "image", "truth", "n", "half_width"))
    plain, coverage = to_source_plane(image, *rays, n, w)
    assert (coverage > 0).all()
    det = lensing.determinant(lensing.jacobian(lambda x, y: _alpha(x, y), *grid(100, 0.05, torch.float64))).abs()
    weighted, _ = to_source_plane(image, *rays, n, w, weights=det)
    none, _ = to_source_plane(image, *grid(100, 0.05, torch.float64), n, w)
    assert relative(plain, truth) < 0.04
    assert relative(weighted, truth) < 0.04
    assert relative(none, truth) > 0.7
    # Unnormalised with |det A| and the ratio of pixel areas it is the flux that lands on each source pixel.
    flux, _ = to_source_plane(image, *rays, n, w, weights=det * 0.05**2, normalise=False)
    source_flux = truth.sum() * (2 * w / n) ** 2
    multiplicity = to_source_plane(torch.ones_like(image), *rays, n, w, weights=det * 0.05**2, normalise=False)[0]
    copies = multiplicity / (2 * w / n) ** 2
    assert 0.9 < copies.median() < 4.5  # two or four images of every point
    torch.testing.assert_close((flux / copies).sum(), source_flux, rtol=0.02, atol=0)


def _alpha(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    beta_x, beta_y = lens(x, y)
    return x - beta_x, y - beta_y


def test_weights_are_a_weighted_mean() -> None:
    rays = torch.zeros(2, 1, 2, dtype=torch.float64)  # two rays at the same place
    image = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    weights = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    source, coverage = to_source_plane(image, rays[0], rays[1], 9, 1.0, weights=weights)
    torch.testing.assert_close(source[4, 4].item(), 1.75)
    torch.testing.assert_close(coverage[4, 4].item(), 4.0)
    assert coverage.sum() == coverage[4, 4]


def test_min_coverage_drops_thin_pixels_and_bounds_the_gradient() -> None:
    # Two rays that touch a pixel with weights of 1e-5: its mean, though right, would have a slope of 1e5.
    step = 2.0 / 9
    beta_x = (torch.tensor([[1e-5, 2e-5]], dtype=torch.float64) * step).requires_grad_()
    beta_y = torch.zeros(1, 2, dtype=torch.float64)
    image = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    slopes = []
    for least in (0.0, 1e-2):
        source, _ = to_source_plane(image, beta_x, beta_y, 9, 1.0, min_coverage=least)
        slopes.append(torch.autograd.grad(source.sum(), beta_x)[0].abs().max())
    assert slopes[0] > 1e4
    assert slopes[1] < 10
    assert source[4, 5] == 0
    assert source[4, 4] > 0


def test_leading_axes_broadcast() -> None:
    beta_x, beta_y = torch.randn(2, 3, 1, 10, 10, dtype=torch.float64)
    image = torch.rand(4, 10, 10, dtype=torch.float64)
    source, coverage = to_source_plane(image, beta_x, beta_y, 8, 1.5)
    assert source.shape == coverage.shape == (3, 4, 8, 8)
    one, covered = to_source_plane(image[2], beta_x[1, 0], beta_y[1, 0], 8, 1.5)
    torch.testing.assert_close(source[1, 2], one, rtol=0, atol=1e-14)
    torch.testing.assert_close(coverage[1, 2], covered, rtol=0, atol=1e-14)
    seen = to_image_plane(source, beta_x, beta_y, 1.5)
    assert seen.shape == (3, 4, 10, 10)
    torch.testing.assert_close(seen[1, 2], to_image_plane(one, beta_x[1, 0], beta_y[1, 0], 1.5), rtol=0, atol=1e-13)
    mapped = torch.func.vmap(lambda i: to_source_plane(i, beta_x[0, 0], beta_y[0, 0], 8, 1.5)[0])(image)
    torch.testing.assert_close(mapped, source[0], rtol=0, atol=1e-13)


def test_referee_17_gradcheck_of_the_splat_and_its_adjoint() -> None:
    torch.manual_seed(3)
    # Rays a tenth of a pixel away from any pixel centre, where the weights have a kink.
    cell = torch.randint(-1, 8, (2, 2, 9, 9)) + 0.1 + 0.8 * torch.rand(2, 2, 9, 9, dtype=torch.float64)
    beta_x, beta_y = ((cell - 3.5) * 0.25).unbind(0)
    image, weights = (torch.rand(2, 9, 9, dtype=torch.float64) + 0.5 for _ in range(2))
    source = torch.rand(2, 8, 8, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (image, beta_x, beta_y, weights)]
    for normalise in (True, False):
        assert torch.autograd.gradcheck(
            lambda i, bx, by, w, n=normalise: to_source_plane(i, bx, by, 8, 1.0, weights=w, normalise=n), inputs
        )
    assert torch.autograd.gradcheck(
        lambda s, bx, by: to_image_plane(s, bx, by, 1.0), [source.requires_grad_(), *inputs[1:3]]
    )
    gradient = torch.autograd.grad(to_source_plane(*inputs[:3], 8, 1.0)[0].square().sum(), inputs[1])[0]
    assert (gradient != 0).float().mean() > 0.5  # the lens is reached through the weights


def test_same_bytes_at_every_run_and_thread_count() -> None:
    beta_x, beta_y = torch.randn(2, 8, 60, 60)
    image = torch.rand(8, 60, 60)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            runs.append(torch.stack(to_source_plane(image, beta_x, beta_y, 16, 1.0)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[1], runs[2])


def test_a_nan_ray_is_not_hidden() -> None:
    beta = torch.zeros(2, 2, dtype=torch.float64)
    beta[0, 0] = torch.nan
    assert to_source_plane(torch.ones(2, 2), beta, beta, 8, 1.0)[0].isnan().any()
    assert to_image_plane(torch.ones(8, 8), beta, beta, 1.0).isnan().any()
    far = torch.full((2, 2), 1e30)
    assert (to_source_plane(torch.ones(2, 2), far, far, 8, 1.0)[0] == 0).all()
