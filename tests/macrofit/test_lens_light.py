import math

import pytest
import torch

from d4lens.lensing import convolve_psf, grid, sersic
from d4lens.macrofit import fit_marginal, open_model
from d4lens.macrofit.lens_light import SHAPE, LensLight, core
from d4lens.observation import Observation

OBSERVATION = Observation(60, 0.08, 0.08, 60.0)


@pytest.fixture(scope="module")
def model():
    return open_model(OBSERVATION)


def galaxy(e1=0.1, e2=-0.05, x0=0.05, y0=-0.03):
    e = math.hypot(e1, e2)
    q, phi = (1 - e) / (1 + e), 0.5 * math.atan2(e2, e1)
    x, y = grid(60, 0.08, torch.float64)
    return convolve_psf(sersic(x, y, 60.0, 0.8, 3.0, q, phi, x0, y0), 1.0)


def test_a_gaussian_is_the_ellipse_blurred(model):
    light = LensLight(model, n_widths=5)
    shape = torch.tensor([0.1, -0.05, 0.2, 0.1]).double()
    wide = light.gaussians(shape)[3]
    x, y = model.pixel_centres()
    sigma, e = float(light.widths[3]), math.hypot(0.2, 0.1)
    q, phi = (1 - e) / (1 + e), 0.5 * math.atan2(0.1, 0.2)
    u = math.cos(phi) * (x - 0.1) + math.sin(phi) * (y + 0.05)
    v = math.cos(phi) * (y + 0.05) - math.sin(phi) * (x - 0.1)
    sharp = torch.exp(-0.5 * (q * u * u + v * v / q) / sigma**2).double()
    inner = (slice(12, -12),) * 2
    assert (wide - convolve_psf(sharp, 1.0))[inner].abs().max() < 1e-3


def test_derivatives_of_the_light(model):
    light = LensLight(model, n_widths=5)
    values = torch.tensor([0.1, -0.05, 0.2, 0.1, 5.0, 4.0, 3.0, 2.0, 1.0]).double()
    stack = light.image_and_jacobian(values)
    for i, name in enumerate(light.names):
        step = torch.zeros(9).double()
        step[i] = 1e-5
        ahead, behind = (light.image_and_jacobian(values + sign * step)[0] for sign in (1, -1))
        assert torch.allclose(stack[1 + i], (ahead - behind) / 2e-5, atol=1e-4 * float(stack[1 + i].abs().max())), name


def test_the_core_tells_centre_and_axes(model):
    counts = torch.poisson(galaxy() + 60.0, generator=torch.Generator().manual_seed(0))
    shape = core(counts, 1 / counts.clamp_min(1), model)
    assert torch.allclose(shape, torch.tensor([0.05, -0.03, 0.1, -0.05]).double(), atol=0.02)


def test_a_lens_that_shines_itself(model):
    truth = {"theta_E": 1.3, "gamma1": 0.03, "source_x": 0.1, "source_y": 0.12, "e1": 0.1, "n": 1.2, "R_e": 0.25}
    truth |= {"lens_e1": 0.1, "lens_e2": -0.05, "lens_x": 0.05, "lens_y": -0.03, "amplitude": 120.0}
    values = {**model.constants, "theta_E": 1.3, **dict.fromkeys(("source_x", "source_y"), 0.0), **truth}
    arcs = model.image(torch.tensor([[values[name] for name in model.free]], dtype=torch.float64))
    counts = torch.poisson(arcs + galaxy().float(), generator=torch.Generator().manual_seed(2))
    result = fit_marginal(counts, model, einstein_radius=torch.tensor([1.45]))
    assert result.converged[0]
    assert result.chi2[0] < 1.15
    assert float(result.columns[0, 0]) == pytest.approx(1.3, rel=0.02)
    assert result.parameters.shape[1] == len(model.free) + len(SHAPE) + 16
    assert float(result.sigma[0, 0]) < 0.05
