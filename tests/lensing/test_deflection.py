"""Closed-form lenses against their definitions and against lenstronomy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import referees
import torch
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.Util.param_util import phi_q2_ellipticity
from torch import Tensor

from d4lens import lensing
from d4lens.lensing import grid, point_mass, point_masses, rod, shear, sie, sie_convergence, sis

Sky = tuple[Tensor, Tensor]


def _peer(profile: str, x: Tensor, y: Tensor, **parameters: float) -> tuple[Tensor, Tensor]:
    alpha = LensModel([profile]).alpha(x.numpy().ravel(), y.numpy().ravel(), [parameters])
    return tuple(torch.from_numpy(np.asarray(a)).view(x.shape) for a in alpha)  # type: ignore[return-value]


def _error(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs))


def test_referee_01_sis_deflection_has_length_theta_E(sky: Sky) -> None:
    for centre in ((0.0, 0.0), (0.013, -0.21)):
        length = torch.hypot(*sis(*sky, 1.27, *centre))
        assert (length - 1.27).abs().max() < 1e-12
    ours = sis(*sky, 1.27, 0.013, -0.21)
    assert _error(ours, _peer("SIS", *sky, theta_E=1.27, center_x=0.013, center_y=-0.21)) < 1e-12


@pytest.mark.parametrize("q", [1.0, 1 - 1e-15, 1 - 1e-8, 0.999, 0.986, 0.95, 0.8, 0.5, 0.2, 0.05])
@pytest.mark.parametrize("phi", [0.0, 0.7, -2.0])
def test_referee_02_sie_agrees_with_lenstronomy(sky: Sky, q: float, phi: float) -> None:
    e1, e2 = phi_q2_ellipticity(phi, q)
    peer = _peer("EPL", *sky, theta_E=1.2, gamma=2.0, e1=e1, e2=e2, center_x=0.11, center_y=-0.2)
    assert _error(sie(*sky, 1.2, q, phi, 0.11, -0.2), peer) < 1e-12


def test_referee_03_point_mass_and_shear_agree_with_lenstronomy(sky: Sky) -> None:
    x, y = sky
    peer = _peer("POINT_MASS", x, y, theta_E=0.3, center_x=0.11, center_y=-0.2)
    assert _error(point_mass(x, y, 0.3, 0.11, -0.2), peer) < 1e-14 * 0.3**2 / 0.015  # relative to the largest alpha
    assert _error(shear(x, y, 0.07, -0.12), _peer("SHEAR", x, y, gamma1=0.07, gamma2=-0.12)) < 1e-14
    ax, ay = shear(x, y, 0.07, -0.12)
    assert torch.equal(ax, 0.07 * x - 0.12 * y)
    assert torch.equal(ay, -0.12 * x - 0.07 * y)


def test_referee_04_rod_is_its_complex_logarithm(sky: Sky) -> None:
    x, y = sky
    theta_E, length, phi, x0, y0 = 0.25, 1.1, 0.6, 0.3, -0.2
    turn = complex(math.cos(phi), math.sin(phi))
    z = (torch.complex(x, y) - complex(x0, y0)) * turn.conjugate()
    alpha = (theta_E**2 / (2 * length) * torch.log((z + length) / (z - length))).conj() * turn
    assert _error(rod(x, y, theta_E, length, phi, x0, y0), (alpha.real, alpha.imag)) < 1e-12
    # From far away it is a point mass, to the last digits: nothing cancels.
    far = torch.tensor([3e4, -3e4, 2e4], dtype=torch.float64), torch.tensor([1e4, 5.0, -2e4], dtype=torch.float64)
    ours, point = torch.stack(rod(*far, theta_E, 0.01, phi)), torch.stack(point_mass(*far, theta_E))
    assert ((ours - point).norm(dim=0) / point.norm(dim=0)).max() < 1e-12


@pytest.mark.parametrize(("points", "tolerance"), [(100, 5e-5), (400, 4e-6)])
def test_rod_is_many_point_masses(sky: Sky, points: int, tolerance: float) -> None:
    x, y = sky
    theta_E, length, phi = 0.25, 1.1, 0.6
    t = (2 * (torch.arange(points, dtype=torch.float64) + 0.5) / points - 1) * length
    mass = torch.full_like(t, theta_E / math.sqrt(points))
    summed = point_masses(x, y, mass, t * math.cos(phi), t * math.sin(phi))
    u, v = x * math.cos(phi) + y * math.sin(phi), y * math.cos(phi) - x * math.sin(phi)
    beyond = torch.hypot((u.abs() - length).clamp_min(0), v) > 0.15
    ours = rod(x, y, theta_E, length, phi)
    assert _error(tuple(a[beyond] for a in ours), tuple(a[beyond] for a in summed)) < tolerance  # type: ignore[arg-type]


@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_referee_05_rod_deflection_jumps_across_it(phi: float) -> None:
    theta_E, length = 0.25, 1.1
    u = torch.linspace(-0.9, 0.9, 19, dtype=torch.float64)
    sides = []
    for v in (1e-9, -1e-9):
        ax, ay = rod(u * math.cos(phi) - v * math.sin(phi), u * math.sin(phi) + v * math.cos(phi), theta_E, length, phi)
        sides.append(ay * math.cos(phi) - ax * math.sin(phi))
    assert (sides[0] - sides[1] - math.pi * theta_E**2 / length).abs().max() < 1e-6
    on = rod(u, torch.zeros_like(u), theta_E, length, 0.0)[1]
    assert torch.equal(on, torch.zeros_like(u))


def test_referee_11_mean_convergence_inside_theta_E_is_one() -> None:
    n, h, theta_E = 200, 0.018, 1.2
    kappa = referees.supersample(lambda x, y: referees.sis_convergence(x, y, theta_E), n, h, 8, torch.float64)
    inside = referees.supersample(lambda x, y: (x * x + y * y < theta_E**2).double(), n, h, 8, torch.float64)
    assert abs((kappa * inside).sum() / inside.sum() - 1) < 1e-3
    for q in (0.9, 0.5):  # the ellipse q u^2 + v^2/q < theta_E^2 plays the circle's part

        def within(x: Tensor, y: Tensor, q: float = q) -> Tensor:
            return (q * x * x + y * y / q < theta_E**2).double()

        kappa = referees.supersample(
            lambda x, y, q=q: within(x, y, q) * sie_convergence(x, y, theta_E, q, 0.0), n, h, 8, torch.float64
        )
        area = referees.supersample(within, n, h, 8, torch.float64).sum()
        assert abs(kappa.sum() / area - 1) < 1e-3


POTENTIALS: dict[str, tuple[Callable, Callable, Callable | None, dict[str, float]]] = {
    "sis": (sis, referees.sis_potential, referees.sis_convergence, {"theta_E": 1.1, "x0": 0.02, "y0": 0.01}),
    "sie": (sie, referees.sie_potential, sie_convergence, {"theta_E": 1.1, "q": 0.6, "phi": 0.4, "x0": 0.02}),
    "round sie": (sie, referees.sie_potential, sie_convergence, {"theta_E": 1.1, "q": 1.0, "phi": 0.4, "y0": 0.01}),
    "shear": (shear, referees.shear_potential, None, {"gamma1": 0.1, "gamma2": -0.05}),
    "point": (point_mass, referees.point_mass_potential, None, {"theta_E": 0.3, "x0": 0.02, "y0": 0.01}),
    "rod": (
        rod,
        referees.rod_potential,
        None,
        {"theta_E": 0.3, "half_length": 0.8, "phi": 0.4, "x0": 0.02, "y0": 0.01},
    ),
}


@pytest.mark.parametrize("name", POTENTIALS)
def test_deflection_is_the_gradient_and_convergence_half_the_laplacian(name: str) -> None:
    deflection, potential, convergence, parameters = POTENTIALS[name]
    x, y = (c.requires_grad_() for c in grid(40, 0.11, torch.float64))
    psi = potential(x, y, **parameters)
    gradient = torch.autograd.grad(psi.sum(), (x, y), create_graph=True)
    alpha = deflection(x, y, **parameters)
    assert _error(gradient, alpha) < 1e-12
    xx = torch.autograd.grad(alpha[0].sum(), x, retain_graph=True)[0]
    yy = torch.autograd.grad(alpha[1].sum(), y)[0]
    kappa = torch.zeros_like(x) if convergence is None else convergence(x, y, **parameters)
    torch.testing.assert_close((xx + yy) / 2, kappa.detach(), rtol=1e-10, atol=1e-10)


def test_potentials_agree_with_lenstronomy(sky: Sky) -> None:
    x, y = sky
    e1, e2 = phi_q2_ellipticity(0.4, 0.6)
    cases = {
        "EPL": (referees.sie_potential(x, y, 1.1, 0.6, 0.4), {"theta_E": 1.1, "gamma": 2.0, "e1": e1, "e2": e2}),
        "POINT_MASS": (referees.point_mass_potential(x, y, 0.3), {"theta_E": 0.3}),
        "SHEAR": (referees.shear_potential(x, y, 0.1, -0.05), {"gamma1": 0.1, "gamma2": -0.05}),
    }
    for profile, (ours, parameters) in cases.items():
        theirs = LensModel([profile]).potential(x.numpy(), y.numpy(), [parameters])
        assert np.abs(ours.numpy() - theirs).max() < 1e-12, profile


def test_many_point_masses_are_the_sum_of_each(sky: Sky) -> None:
    x, y = sky
    theta_E, x0, y0 = torch.rand(25, dtype=torch.float64) * 0.1, *torch.randn(2, 25, dtype=torch.float64)
    single = [point_mass(x, y, *values) for values in zip(theta_E, x0, y0)]
    expected = sum(a for a, _ in single), sum(a for _, a in single)
    assert _error(point_masses(x, y, theta_E, x0, y0), expected) < 1e-13  # type: ignore[arg-type]
    # A row and a column of coordinates, a batch of lists, and zero masses as padding.
    batch = [torch.stack((v, v.flip(0)))[:, None, None] for v in (theta_E, x0, y0)]
    batch = [torch.cat((v, torch.zeros(2, 1, 1, 3, dtype=torch.float64)), -1) for v in batch]
    for ours in zip(*point_masses(x[:1], y[:, :1], *batch)):
        assert _error(ours, expected) < 1e-13  # type: ignore[arg-type]
    batch[0].requires_grad_()
    (gradient,) = torch.autograd.grad(point_masses(x, y, *batch)[0].sum(), batch[0])
    one = theta_E[3].clone().requires_grad_()
    (expected_gradient,) = torch.autograd.grad(point_mass(x, y, one, x0[3], y0[3])[0].sum(), one)
    torch.testing.assert_close(gradient[0, 0, 0, 3], expected_gradient)


def test_smoothed_convergences_have_the_right_mass_and_shape(sky: Sky) -> None:
    x, y = sky
    area = 0.05**2
    kappa = lensing.point_mass_convergence(x, y, 0.3, 0.2, -0.1, 0.1)
    torch.testing.assert_close(kappa.sum() * area, torch.tensor(math.pi * 0.09, dtype=torch.float64))
    length, phi, points = 0.9, 0.6, 200
    kappa = lensing.rod_convergence(x, y, 0.3, length, phi, 0.2, -0.1, 0.1)
    torch.testing.assert_close(kappa.sum() * area, torch.tensor(math.pi * 0.09, dtype=torch.float64))
    t = (2 * (torch.arange(points, dtype=torch.float64) + 0.5) / points - 1) * length
    beads = [
        lensing.point_mass_convergence(
            x, y, 0.3 / math.sqrt(points), 0.2 + d * math.cos(phi), -0.1 + d * math.sin(phi), 0.1
        )
        for d in t
    ]
    assert (kappa - sum(beads)).abs().max() < 1e-4 * kappa.max()


# Every function, its parameters, and whether its value at the very centre is defined as zero.
SINGULAR: dict[str, dict[str, float]] = {
    "sis": {"theta_E": 1.1, "x0": 0.0, "y0": 0.0},
    "sie": {"theta_E": 1.1, "q": 0.7, "phi": 0.3, "x0": 0.0, "y0": 0.0},
    "sie_convergence": {"theta_E": 1.1, "q": 0.7, "phi": 0.3, "x0": 0.0, "y0": 0.0},
    "point_mass": {"theta_E": 1.1, "x0": 0.0, "y0": 0.0},
    "rod": {"theta_E": 1.1, "half_length": 0.4, "phi": 0.0, "x0": 0.0, "y0": 0.0},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", [0.7, 1.0])
@pytest.mark.parametrize("name", SINGULAR)
def test_values_and_gradients_are_finite_everywhere(name: str, q: float, dtype: torch.dtype) -> None:
    """At the centre, on the axes, at a rod's ends and at q = 1; in float64 to second order."""
    parameters = {
        k: torch.tensor(q if k == "q" else v, dtype=dtype, requires_grad=True) for k, v in SINGULAR[name].items()
    }
    x, y = (c.requires_grad_() for c in grid(17, 0.1, dtype))
    assert (x[8, 8], y[8, 8]) == (0, 0)
    assert x[8, 12] == parameters.get("half_length", x[8, 12])
    out = getattr(lensing, name)(x, y, **parameters)
    out = out if isinstance(out, tuple) else (out,)
    for value in out:
        assert value.dtype == dtype
        assert value.isfinite().all()
        first = torch.autograd.grad(value.sum(), (x, y, *parameters.values()), create_graph=True, allow_unused=True)
        assert all(g.isfinite().all() for g in first if g is not None)
        assert any(g is not None and g.abs().max() > 0 for g in first)
        for g in first:
            if dtype == torch.float64 and g is not None and g.requires_grad:
                second = torch.autograd.grad(g.sum(), (x, y), retain_graph=True, allow_unused=True)
                assert all(s.isfinite().all() for s in second if s is not None)


@pytest.mark.parametrize("name", ["sis", "sie", "point_mass", "rod"])
def test_deflection_is_zero_at_the_centre(name: str) -> None:
    zero = torch.zeros((), dtype=torch.float64)
    for value in getattr(lensing, name)(zero, zero, **SINGULAR[name]):
        assert value == 0


@pytest.mark.parametrize("q", [1.0, 0.985, 0.6])
def test_sie_gradients_pass_gradcheck_through_the_round_limit(q: float) -> None:
    x, y = grid(8, 0.3, torch.float64)

    def f(theta_E: Tensor, e: Tensor, phi: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        return sie(x, y, theta_E, 1 - e * e, phi, x0)  # e * e: q = 1 is then an interior point

    e = math.sqrt(1 - q) + (0.01 if q == 1 else 0)
    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.1, e, 0.4, 0.07)]
    assert torch.autograd.gradcheck(f, inputs)
    # The derivative in q at exactly q = 1, from the side that exists.
    at = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(sie(x, y, 1.1, at, 0.4)[0].square().sum(), at)
    step = 1e-6
    values = [sie(x, y, 1.1, 1 - k * step, 0.4)[0].square().sum() for k in range(3)]
    torch.testing.assert_close(gradient, (3 * values[0] - 4 * values[1] + values[2]) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["sis", "point_mass", "rod"])
def test_gradients_pass_gradcheck(name: str) -> None:
    x, y = (c.requires_grad_() for c in grid(8, 0.31, torch.float64))
    values = {**SINGULAR[name], "x0": 0.07, "y0": -0.03}
    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values.values()]
    assert torch.autograd.gradcheck(lambda *a: getattr(lensing, name)(*a), [x, y, *inputs])


@pytest.mark.parametrize("name", ["sis", "sie", "point_mass", "rod", "shear"])
def test_parameters_batch_by_broadcasting(name: str) -> None:
    x, y = grid(9, 0.3, torch.float64)
    values = {"shear": {"gamma1": 0.1, "gamma2": -0.05}, **SINGULAR}[name]
    factors = torch.tensor([0.5, 0.8, 0.9], dtype=torch.float64)
    batched = getattr(lensing, name)(x, y, **{k: v * factors[:, None, None] for k, v in values.items()})
    assert batched[0].shape == (3, 9, 9)
    for i, factor in enumerate(factors.tolist()):
        single = getattr(lensing, name)(x, y, **{k: v * factor for k, v in values.items()})
        assert _error((batched[0][i], batched[1][i]), single) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["sis", "sie", "point_mass", "rod", "shear"])
def test_any_float_dtype_is_kept(name: str, dtype: torch.dtype) -> None:
    values = {"shear": {"gamma1": 0.1, "gamma2": -0.05}, **SINGULAR}[name]
    exact = getattr(lensing, name)(*grid(8, 0.3, torch.float64), **values)
    ours = getattr(lensing, name)(*grid(8, 0.3, dtype), **values)
    assert ours[0].dtype == ours[1].dtype == dtype
    assert _error(tuple(a.double() for a in ours), exact) < 16 * torch.finfo(dtype).eps  # type: ignore[arg-type]


def test_forward_mode_agrees_with_reverse_mode() -> None:
    x, y = grid(8, 0.3, torch.float64)

    def f(p: Tensor) -> Tensor:
        return sum(rod(x, y, p[0], p[1], p[2])) + sum(sie(x, y, p[0], p[1], p[2]))  # type: ignore[return-value]

    p = torch.tensor([0.6, 0.7, 0.2], dtype=torch.float64)
    torch.testing.assert_close(torch.func.jacfwd(f)(p), torch.func.jacrev(f)(p))
