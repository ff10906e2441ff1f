"""The truncated Green function against closed forms: accuracy, centring, and what it cannot do."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import referees
import scipy.special
import torch
from lenstronomy.LensModel.lens_model import LensModel
from torch import Tensor

from d4lens.lensing import (
    PoissonSolver,
    d4,
    grid,
    shear,
    sie,
    sie_convergence,
    to_image_plane,
    to_source_plane,
)

Sky = tuple[Tensor, Tensor]
Gaussian = Callable[..., tuple[Tensor, Tensor, Tensor]]


def _error(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs))


@pytest.mark.parametrize("n", [149, 150, 151])
@pytest.mark.parametrize("sigma", [0.4, 0.15])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-7)])
def test_referee_06_gaussian_kappa(
    n: int, sigma: float, dtype: torch.dtype, tolerance: float, gaussian: Gaussian
) -> None:
    for centre in ((0.0, 0.0), (0.33, -0.71)):
        kappa, ax, ay = gaussian(n, 0.05, sigma, *centre)
        ours = PoissonSolver(n, 0.05).deflection(kappa.to(dtype))
        assert ours[0].dtype == ours[1].dtype == dtype
        assert _error(ours, (ax, ay)) < tolerance


def test_gaussian_potential_is_exact_with_its_constant() -> None:
    x, y = grid(151, 0.05, torch.float64)
    r2, sigma = (x * x + y * y).numpy(), 0.4
    t = r2 / (2 * sigma**2)
    # psi = sigma^2 [ln r^2 + E1(r^2 / 2 sigma^2)]: far away theta_E^2 ln r, as of a point mass.
    with np.errstate(divide="ignore", invalid="ignore"):
        psi = sigma**2 * (np.log(r2) + scipy.special.exp1(t))
    psi[75, 75] = sigma**2 * (math.log(2 * sigma**2) - np.euler_gamma)
    ours = PoissonSolver(151, 0.05).potential(torch.from_numpy(np.exp(-t)))
    assert np.abs(ours.numpy() - psi).max() < 1e-12


def test_gaussian_agrees_with_lenstronomy(gaussian: Gaussian) -> None:
    x, y = grid(100, 0.06, torch.float64)
    kappa, *_ = gaussian(100, 0.06, 0.3, 0.2, 0.1)
    parameters = {"amp": 2 * math.pi * 0.3**2, "sigma": 0.3, "center_x": 0.2, "center_y": 0.1}
    theirs = LensModel(["GAUSSIAN"]).alpha(x.numpy().ravel(), y.numpy().ravel(), [parameters])
    peer = tuple(torch.from_numpy(a).view(100, 100) for a in theirs)
    assert _error(PoissonSolver(100, 0.06).deflection(kappa), peer) < 1e-12  # type: ignore[arg-type]


def test_referee_07_sie_through_the_grid(sky: Sky) -> None:
    x, y = sky
    n, h = 150, 0.05
    disc = (n * h / 2) ** 2

    def within(x: Tensor, y: Tensor) -> Tensor:
        return sie_convergence(x, y, 1.2, 0.8, 0.3) * (x * x + y * y < disc)

    kappa = referees.supersample(within, n, h, 8, torch.float64)
    kappa[71:79, 71:79] = referees.supersample(within, 8, h, 256, torch.float64)  # the cusp's average needs more points
    ax, ay = PoissonSolver(n, h).deflection(kappa)
    true_x, true_y = sie(x, y, 1.2, 0.8, 0.3)
    r = torch.hypot(x, y)
    fit = (r > 0.6) & (r < 2.5)
    # What lies outside the disc acts inside as a shear: two numbers by least squares.
    design = torch.stack((torch.cat((x[fit], -y[fit])), torch.cat((y[fit], x[fit]))), -1)
    lack = torch.cat(((true_x - ax)[fit], (true_y - ay)[fit]))
    gamma = torch.linalg.lstsq(design, lack[:, None]).solution[:, 0]
    sx, sy = shear(x, y, *gamma)
    error = torch.hypot(ax + sx - true_x, ay + sy - true_y)
    assert error[(r > 0.6) & (r < 1.2)].max() < 3e-3
    assert error[(r > 1.2) & (r < 2.5)].max() < 1e-3


@pytest.mark.parametrize("n", [149, 150, 151])
def test_referee_08_symmetric_kappa_gives_antisymmetric_deflection(n: int, gaussian: Gaussian) -> None:
    rough = torch.rand(n, n, dtype=torch.float64)
    rough = sum(d4.transform(rough, g) for g in d4.ELEMENTS) / 8
    for kappa in (gaussian(n, 0.05, 0.4)[0], rough):
        ax, ay = PoissonSolver(n, 0.05).deflection(kappa)
        psi = PoissonSolver(n, 0.05).potential(kappa)
        scale = ax.abs().max()
        assert (ax + ax.flip(-1)).abs().max() < 1e-12 * scale
        assert (ax - ax.flip(-2)).abs().max() < 1e-12 * scale
        assert (ay + ay.flip(-2)).abs().max() < 1e-12 * scale
        assert (ax - ay.mT).abs().max() < 1e-12 * scale
        assert (psi - psi.flip(-1)).abs().max() < 1e-12 * psi.abs().max()
        if n % 2:
            assert ax[n // 2, n // 2].abs() < 1e-12 * scale


@pytest.mark.parametrize("n", [31, 32])
def test_referee_09_padding_to_2n_is_padding_to_4n(n: int) -> None:
    h, fine = 0.05, 4 * n
    kappa = torch.rand(n, n, dtype=torch.float64).numpy()
    k = 2 * np.pi * np.fft.fftfreq(fine, h)
    kx, ky = np.meshgrid(k, k)
    s, radius = np.hypot(kx, ky), 1.5 * n * h
    with np.errstate(divide="ignore", invalid="ignore"):
        green = (
            -(1 - scipy.special.j0(radius * s)) / s**2 + radius * math.log(radius) * scipy.special.j1(radius * s) / s
        )
    green[0, 0] = -(radius**2) / 4 + radius**2 * math.log(radius) / 2
    kx[:, fine // 2] = ky[fine // 2] = 0
    spectrum = 2 * green * np.fft.fft2(kappa, (fine, fine))
    wide = [np.fft.ifft2(factor * spectrum).real[:n, :n] for factor in (1, 1j * kx, 1j * ky)]
    solver, kappa = PoissonSolver(n, h), torch.from_numpy(kappa)
    for ours, theirs in zip((solver.potential(kappa), *solver.deflection(kappa)), wide):
        assert np.abs(ours.numpy() - theirs).max() < 1e-12


def test_referee_10_curl_free_and_poisson(gaussian: Gaussian) -> None:
    lack = []
    for n, h in ((75, 0.1), (150, 0.05), (300, 0.025)):
        kappa, *_ = gaussian(n, h, 0.4, 0.2, -0.1)
        ax, ay = PoissonSolver(n, h).deflection(kappa)
        (yx, xx), (yy, xy) = torch.gradient(ax, spacing=h), torch.gradient(ay, spacing=h)
        inside = (slice(1, -1), slice(1, -1))
        if h == 0.05:
            assert (xy - yx)[inside].abs().max() < 1e-3
        lack.append((xx + yy - 2 * kappa)[inside].abs().max().item())
    assert 3.6 < lack[0] / lack[1] < 4.4
    assert 3.6 < lack[1] / lack[2] < 4.4


def test_potential_and_deflection_agree(gaussian: Gaussian) -> None:
    kappa, *_ = gaussian(150, 0.05, 0.4)
    solver = PoissonSolver(150, 0.05)
    psi, (ax, ay) = solver.potential(kappa), solver.deflection(kappa)
    y_slope, x_slope = torch.gradient(psi, spacing=0.05)
    inside = (slice(1, -1), slice(1, -1))
    assert (x_slope - ax)[inside].abs().max() < 2e-3
    assert (y_slope - ay)[inside].abs().max() < 2e-3


def test_referee_17_gradcheck_of_solver_and_layer() -> None:
    n, h = 8, 0.25
    solver = PoissonSolver(n, h)
    x, y = grid(n, h, torch.float64)
    kappa = (0.3 * torch.rand(2, n, n, dtype=torch.float64)).requires_grad_()
    image = torch.rand(2, n, n, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: (solver.potential(k), *solver.deflection(k)), kappa)
    assert torch.autograd.gradgradcheck(lambda k: solver.deflection(k)[0] ** 2, kappa[0].detach().requires_grad_())

    def layer(kappa: Tensor, image: Tensor) -> Tensor:
        ax, ay = solver.deflection(kappa)
        source, _ = to_source_plane(image, x - ax, y - ay, n, 1.3)
        return to_image_plane(source, x - ax, y - ay, 1.3)

    assert torch.autograd.gradcheck(layer, (kappa, image))
    (through,) = torch.autograd.grad((layer(kappa, image) - image).square().sum(), kappa)
    assert through.isfinite().all()
    assert (through.abs() > 1e-6).all()


def test_is_linear_and_batches() -> None:
    solver = PoissonSolver(20, 0.1)
    kappa = torch.rand(2, 3, 20, 20, dtype=torch.float64)
    ax, ay = solver(kappa)
    assert ax.shape == ay.shape == kappa.shape
    torch.testing.assert_close(ax[1, 2], solver(kappa[1, 2])[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(2 * ay[0, 0] - ay[1, 1], solver(2 * kappa[0, 0] - kappa[1, 1])[1], rtol=0, atol=1e-13)
    mapped = torch.func.vmap(torch.func.vmap(solver.potential))(kappa)
    torch.testing.assert_close(mapped, solver.potential(kappa), rtol=0, atol=1e-13)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_works_in_float32_under_autocast(half: torch.dtype, gaussian: Gaussian) -> None:
    kappa, *_ = gaussian(64, 0.1, 0.4)
    solver = PoissonSolver(64, 0.1)
    plain = solver.deflection(kappa.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _error(solver.deflection(kappa.float()), plain) == 0
        assert solver.deflection(kappa.to(half))[0].dtype == torch.float32
    rounded = kappa.to(half)
    assert _error(solver.deflection(rounded), solver.deflection(rounded.float())) == 0


@pytest.mark.parametrize(
    "cast", [lambda s: s.to(torch.float32), lambda s: s.half(), lambda s: s.double(), copy.deepcopy]
)
def test_casting_the_module_keeps_its_precision(cast: Callable, gaussian: Gaussian) -> None:
    kappa, ax, ay = gaussian(64, 0.1, 0.4)
    solver = cast(torch.nn.Sequential(PoissonSolver(64, 0.1)))[0]
    assert _error(solver.deflection(kappa), (ax, ay)) < 1e-12
    assert _error(solver.deflection(kappa.float()), (ax, ay)) < 5e-7


def test_moves_with_the_module_and_stays_out_of_the_checkpoint() -> None:
    model = torch.nn.Sequential(PoissonSolver(16, 0.1), torch.nn.Linear(1, 1))
    assert set(model.state_dict()) == {"1.weight", "1.bias"}
    moved = copy.deepcopy(model).to("meta")[0]
    assert moved.deflection(torch.zeros(16, 16, device="meta"))[0].device.type == "meta"


def test_first_use_in_inference_mode_does_not_spoil_training() -> None:
    with torch.inference_mode():
        PoissonSolver(17, 0.1).deflection(torch.rand(17, 17))
    solver = PoissonSolver(17, 0.1)
    with torch.inference_mode():
        solver.deflection(torch.rand(17, 17))
    kappa = torch.rand(17, 17, requires_grad=True)
    solver.deflection(kappa)[0].square().sum().backward()
    assert kappa.grad is not None
    assert kappa.grad.abs().max() > 0
