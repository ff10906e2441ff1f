from collections.abc import Callable

import numpy as np
import pytest
import referees
import torch
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.Util.param_util import phi_q2_ellipticity
from torch import Tensor

from d4lens import lensing
from d4lens.lensing import (
    determinant,
    grid,
    jacobian,
    jacobian_from_field,
    magnification,
    magnification_from_field,
    shear,
    sie,
    sis,
)


def lens(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    (ax, ay), (sx, sy) = sie(x, y, 1.2, 0.7, 0.4), shear(x, y, 0.06, -0.03)
    return ax + sx, ay + sy


def test_referee_12_determinant_from_the_field_agrees_with_autograd(
    sky: tuple[Tensor, Tensor], gaussian: Callable
) -> None:
    x, y = sky
    sigma = 0.4

    def smooth(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        r2 = x * x + y * y
        scale = -0.8 * sigma**2 * torch.expm1(-r2 / (2 * sigma**2)) / r2
        return scale * x, scale * y

    kappa, *_ = gaussian(150, 0.05, sigma)
    field = lensing.PoissonSolver(150, 0.05).deflection(0.4 * kappa)
    exact = determinant(jacobian(smooth, x, y))
    inside = (slice(2, -2), slice(2, -2))
    difference = (determinant(jacobian_from_field(*field, 0.05)) - exact).abs()
    assert difference[inside].max() < 1e-4
    assert difference.max() < 5e-4
    # A singular lens: its field must be left alone near the centre, its callable need not be.
    far = torch.hypot(x, y) > 0.8
    difference = (determinant(jacobian_from_field(*lens(x, y), 0.05)) - determinant(jacobian(lens, x, y))).abs()
    assert difference[inside][far[inside]].max() < 1e-4


def test_jacobian_and_magnification_agree_with_lenstronomy() -> None:
    x, y = grid(30, 0.11, torch.float64)
    e1, e2 = phi_q2_ellipticity(0.4, 0.7)
    peer = LensModel(["EPL", "SHEAR"])
    parameters = [{"theta_E": 1.2, "gamma": 2.0, "e1": e1, "e2": e2}, {"gamma1": 0.06, "gamma2": -0.03}]
    xx, xy, yx, yy = peer.hessian(x.numpy(), y.numpy(), parameters)
    ours = jacobian(lens, x, y).numpy()
    for i, j, theirs in ((0, 0, 1 - xx), (0, 1, -xy), (1, 0, -yx), (1, 1, 1 - yy)):
        np.testing.assert_allclose(ours[..., i, j], theirs, atol=1e-11)
    np.testing.assert_allclose(
        1 / magnification(lens, x, y).numpy(), 1 / peer.magnification(x.numpy(), y.numpy(), parameters), atol=1e-10
    )


@pytest.mark.parametrize("rho", [0.05, 0.2])
def test_referee_13_magnification_of_a_centred_disc(rho: float) -> None:
    theta_E = 1.0

    def seen(x: Tensor, y: Tensor) -> Tensor:
        ax, ay = sis(x, y, theta_E)
        return (torch.hypot(x - ax, y - ay) < rho).double()

    n, h = 100, 0.026
    image = referees.supersample(seen, n, h, 16, torch.float64)
    area = image.sum() * h * h / (torch.pi * rho**2)
    assert abs(area / (4 * theta_E / rho) - 1) < 1e-3
    # Point by point: mu = 1 / (1 - theta_E / r).
    r = torch.linspace(1.1, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(magnification(lambda x, y: sis(x, y, theta_E), r, 0 * r), 1 / (1 - theta_E / r))


def test_finite_with_its_sign_on_the_critical_curve() -> None:
    r = torch.tensor([1.0, 1.0 + 1e-9, 1.0 - 1e-9, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    mu = magnification(lambda x, y: sis(x, y, 1.0), r, torch.zeros_like(r))
    torch.testing.assert_close(mu.detach(), torch.tensor([1e6, 1e6, -1e6, -1.0, 2.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(mu.sum(), r)
    assert gradient.isfinite().all()
    flat = torch.zeros(8, 8), torch.zeros(8, 8)
    assert torch.equal(magnification_from_field(*flat, 0.1), torch.ones(8, 8))
    x, y = grid(8, 0.1)
    assert magnification_from_field(x, y, 0.1).isfinite().all()  # det A = 0 everywhere


def test_finite_differences_have_the_order_they_claim() -> None:
    errors = []
    for n in (40, 80):
        h = 2.0 / n
        x, y = grid(n, h, torch.float64)
        left, right = torch.exp(x - y / 2), torch.exp(y)
        a = jacobian_from_field(left, right + x, h)
        rows = torch.stack((1 - left, left / 2), -1), torch.stack((-torch.ones_like(x), 1 - right), -1)
        exact = torch.stack(rows, -2)
        error = (a - exact).abs().amax((-1, -2))
        inside = (x.abs() < 0.7) & (y.abs() < 0.7)
        errors.append((error[inside].max(), error.max()))
    assert 14 < errors[0][0] / errors[1][0] < 18
    assert 3.3 < errors[0][1] / errors[1][1] < 4.6


def test_jacobian_batches_and_differentiates_in_the_parameters() -> None:
    x, y = grid(8, 0.3, torch.float64)
    theta_E = torch.tensor([0.8, 1.1], dtype=torch.float64, requires_grad=True)
    a = jacobian(lambda x, y: sis(x, y, theta_E[:, None, None]), x, y)
    assert a.shape == (2, 8, 8, 2, 2)
    torch.testing.assert_close(
        1 - a.diagonal(dim1=-2, dim2=-1).sum(-1) / 2, referees.sis_convergence(x, y, theta_E[:, None, None])
    )
    (gradient,) = torch.autograd.grad(a[0].diagonal(dim1=-2, dim2=-1).sum(), theta_E)
    torch.testing.assert_close(gradient, torch.stack((-(1 / torch.hypot(x, y)).sum(), 0 * x[0, 0])))
