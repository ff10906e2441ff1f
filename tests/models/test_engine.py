import pytest
import torch

from d4lens.errors import PhysicsError
from d4lens.lensing import d4, grid, sersic, shear, sis
from d4lens.models.batch import turned_fit
from d4lens.models.engine import LensEngine
from d4lens.observation import Observation

FIT = torch.tensor([[1.3, 0.12, -0.04, 0.15, -0.1, 0.1, 0.05], [1.1, -0.05, 0.1, 0.0, 0.2, 0.0, 0.1]])


@pytest.fixture
def engine():
    return LensEngine(Observation(60, 0.1, 0.08, 40.0), 1.5, 30)


def lensed(fit, dtype=torch.float64):
    """A smooth source seen through SIS and shear, closed forms only."""
    x, y = grid(60, 0.1, dtype=dtype)
    t, g1, g2, sx, sy, *_ = (v[:, None, None] for v in fit.to(dtype).unbind(1))
    ax, ay = sis(x, y, t)
    bx, by = shear(x, y, g1, g2)
    return sersic(x - ax - bx, y - ay - by, 100.0, 0.5, 0.7, 0.8, 0.3, sx, sy)


def test_it_has_no_parameters_and_no_state(engine):
    assert list(engine.parameters()) == []
    assert engine.state_dict() == {}


def test_without_substructure_the_deflection_is_the_closed_form(engine):
    out = engine(torch.zeros(2, 60, 60, dtype=torch.float64), lensed(FIT), FIT)
    x, y = grid(60, 0.1, dtype=torch.float64)
    for row in range(2):
        theta_e, g1, g2 = FIT[row, :3].double()
        alpha = [a + b for a, b in zip(sis(x, y, theta_e), shear(x, y, g1, g2))]
        assert torch.allclose(out["alpha_x"][row], alpha[0], atol=1e-12)
        assert torch.allclose(out["alpha_y"][row], alpha[1], atol=1e-12)


def test_only_the_right_lens_gives_the_image_back(engine):
    image = lensed(FIT)
    kappa = torch.zeros(2, 60, 60, dtype=torch.float64)

    def misfit(fit):
        return ((engine(kappa, image, fit)["relensed"] - image).norm() / image.norm()).item()

    wrong = FIT.clone()
    wrong[:, 0] *= 0.8
    assert misfit(FIT) < 0.08
    assert misfit(wrong) > 4 * misfit(FIT)


def test_gradients_reach_the_convergence_through_the_layer(engine):
    kappa = (0.01 * torch.rand(2, 60, 60, dtype=torch.float64)).requires_grad_()
    image = lensed(FIT)
    out = engine(kappa, image, FIT)
    (gradient,) = torch.autograd.grad((out["relensed"] - image).square().mean(), kappa)
    assert torch.isfinite(gradient).all()
    assert (gradient.abs() > 0).double().mean() > 0.99  # a mass anywhere bends every ray


def test_the_gradient_is_that_of_finite_differences(engine):
    image = lensed(FIT)[:1]
    # A lens of irregular deflection, so that no ray sits on the edge of a source pixel, where the splat has a kink.
    kappa = 0.02 * torch.rand(1, 60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    bump = torch.zeros_like(kappa)
    bump[0, 20, 33] = 1.0

    def misfit(size):
        return (engine(kappa + size * bump, image, FIT[:1])["relensed"] - image).square().sum()

    size = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(misfit(size), size)
    step = 1e-6
    assert slope.item() == pytest.approx((misfit(step) - misfit(-step)).item() / (2 * step), rel=1e-3)


def test_all_fields_turn_with_the_sky(engine):
    kappa, image = 0.05 * torch.rand(2, 60, 60, dtype=torch.float64), lensed(FIT)
    out = engine(kappa, image, FIT)
    for g in d4.ELEMENTS:
        turned = engine(d4.transform(kappa, g), d4.transform(image, g), turned_fit(FIT.double(), g))
        for name in ("source", "coverage", "relensed"):
            assert torch.allclose(turned[name], d4.transform(out[name], g), atol=1e-8), (name, g)
        expected = d4.transform_vector(out["alpha_x"], out["alpha_y"], g)
        assert torch.allclose(turned["alpha_x"], expected[0], atol=1e-10)
        assert torch.allclose(turned["alpha_y"], expected[1], atol=1e-10)


def test_autocast_does_not_reach_the_physics(engine):
    kappa, image = 0.05 * torch.rand(2, 60, 60), lensed(FIT, torch.float32)
    plain = engine(kappa, image, FIT)
    with torch.autocast("cpu", torch.bfloat16):
        cast = engine(kappa, image, FIT)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


def test_a_source_wider_than_the_image_is_refused():
    with pytest.raises(PhysicsError, match="source_half_width"):
        LensEngine(Observation(60, 0.1, 0.08, 40.0), 3.5, 30)
