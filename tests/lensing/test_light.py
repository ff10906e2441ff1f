import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.Util.param_util import ellipticity2phi_q, phi_q2_ellipticity
from torch import Tensor

from d4lens.lensing import axis_ratio_and_angle, ellipticity, grid, sersic, sersic_ellipticity


@pytest.mark.parametrize("n", [0.5, 1.0, 1.5, 4.0, 10.0])
@pytest.mark.parametrize("q", [1.0, 0.7, 0.15])
def test_agrees_with_lenstronomy(sky: tuple[Tensor, Tensor], n: float, q: float) -> None:
    x, y = sky
    e1, e2 = phi_q2_ellipticity(0.6, q)
    peer = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(
        x.numpy(),
        y.numpy(),
        [{"amp": 100.0, "R_sersic": 0.5, "n_sersic": n, "e1": e1, "e2": e2, "center_x": 0.113, "center_y": -0.21}],
    )
    for ours in (
        sersic(x, y, 100.0, 0.5, n, q, 0.6, 0.113, -0.21),
        sersic_ellipticity(x, y, 100.0, 0.5, n, e1, e2, 0.113, -0.21),
    ):
        np.testing.assert_allclose(ours.numpy(), peer, rtol=1e-11, atol=1e-300)


def test_amplitude_is_the_brightness_at_R_e_along_the_ellipse() -> None:
    q, phi, t = 0.6, 0.7, torch.linspace(0, 6, 20, dtype=torch.float64)
    u, v = 0.5 * t.cos() / math.sqrt(q), 0.5 * t.sin() * math.sqrt(q)
    x, y = u * math.cos(phi) - v * math.sin(phi), u * math.sin(phi) + v * math.cos(phi)
    torch.testing.assert_close(sersic(x, y, 7.0, 0.5, 2.0, q, phi), torch.full_like(t, 7.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0.5, 1.0, 4.0])
def test_finite_at_the_centre_and_when_round(n: float, dtype: torch.dtype) -> None:
    x, y = (c.requires_grad_() for c in grid(9, 0.1, dtype))
    for function, shape in ((sersic, (1.0, 0.3)), (sersic_ellipticity, (0.0, 0.0))):
        values = (10.0, 0.5, n, *shape, 0.0, 0.0)
        inputs = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in values]
        light = function(x, y, *inputs)
        torch.testing.assert_close(light[4, 4].item(), 10 * math.exp(1.9992 * n - 0.3271), rtol=1e-5, atol=0)
        gradients = torch.autograd.grad(light.sum(), (x, y, *inputs))
        assert all(g.isfinite().all() for g in gradients)
        assert gradients[2] > 0


def test_gradients_pass_gradcheck() -> None:
    x, y = grid(8, 0.2, torch.float64)
    for function, values in (
        (sersic, (10.0, 0.5, 1.5, 0.7, 0.3, 0.03, 0.01)),
        (sersic_ellipticity, (10.0, 0.5, 1.5, 0.0, 0.0, 0.03, 0.01)),
    ):
        inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
        assert torch.autograd.gradcheck(lambda *a, f=function: f(x, y, *a), inputs)


@given(st.floats(0.02, 1.0), st.floats(-1.5, 1.5))
def test_ellipticity_round_trip_and_lenstronomy(q: float, phi: float) -> None:
    e1, e2 = (e.double() for e in ellipticity(torch.tensor(q, dtype=torch.float64), phi))
    np.testing.assert_allclose((e1.item(), e2.item()), phi_q2_ellipticity(phi, q), atol=1e-15)
    back_q, back_phi = axis_ratio_and_angle(e1, e2)
    np.testing.assert_allclose(back_q.item(), q, rtol=1e-12)
    if q < 0.999:
        np.testing.assert_allclose(back_phi.item(), phi, atol=1e-11)
        np.testing.assert_allclose(back_phi.item(), ellipticity2phi_q(e1.item(), e2.item())[0], atol=1e-11)


def test_round_ellipse_has_finite_gradients() -> None:
    e1, e2 = torch.zeros(2, 3, dtype=torch.float64).requires_grad_().unbind(0)
    q, phi = axis_ratio_and_angle(e1, e2)
    assert torch.equal(q, torch.ones_like(q))
    assert torch.equal(phi, torch.zeros_like(phi))
    for value in (q, phi):
        assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), (e1, e2), retain_graph=True))
