"""The group, its action on scalars, vectors and spin-2 fields, and every operator of the room under all eight."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import referees
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from d4lens import lensing
from d4lens.errors import PhysicsError
from d4lens.lensing import d4, grid
from d4lens.observation import bin_pixels

ELEMENT = st.sampled_from(list(d4.ELEMENTS))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
ALL = pytest.mark.parametrize("g", d4.ELEMENTS)


def close(ours: Tensor, theirs: Tensor) -> None:
    """Referee's tolerance, relative to the field's size: 2e-6 in float32, 1e-12 in float64."""
    assert ours.dtype == theirs.dtype
    tolerance = 2e-6 if ours.dtype == torch.float32 else 1e-12
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1)


@given(ELEMENT, ELEMENT, ELEMENT)
def test_group_axioms(a: int, b: int, c: int) -> None:
    assert d4.compose(a, b) in d4.ELEMENTS
    assert d4.compose(a, d4.compose(b, c)) == d4.compose(d4.compose(a, b), c)
    assert d4.compose(a, d4.inverse(a)) == d4.compose(d4.inverse(a), a) == 0
    assert d4.compose(a, 0) == d4.compose(0, a) == a


def test_it_is_d4_and_not_another_group_of_eight() -> None:
    assert sorted(d4.compose(1, g) for g in d4.ELEMENTS) == list(d4.ELEMENTS)
    assert d4.compose(1, 4) != d4.compose(4, 1)
    assert [g for g in d4.ELEMENTS if g and d4.compose(g, g) == 0] == [2, 4, 5, 6, 7]  # five elements of order two


@given(ELEMENT, ELEMENT, st.integers(1, 7))
def test_actions_are_homomorphisms(g: int, h: int, n: int) -> None:
    a, b = torch.rand(2, 3, n, n)
    both = d4.compose(g, h)
    assert torch.equal(d4.transform(d4.transform(a, h), g), d4.transform(a, both))
    for action in (d4.transform_vector, d4.transform_spin2, d4.transform_points, d4.transform_spin2_values):
        once, twice = action(a, b, both), action(*action(a, b, h), g)
        assert torch.equal(once[0], twice[0])
        assert torch.equal(once[1], twice[1])
        back = action(*once, d4.inverse(both))
        assert torch.equal(back[0], a)
        assert torch.equal(back[1], b)


def test_the_sense_is_the_documented_one() -> None:
    image = torch.zeros(3, 3)
    image[1, 2] = 1  # content at (x, y) = (1, 0)
    turned = torch.zeros(3, 3)
    turned[2, 1] = 1  # (0, 1): y grows with the row
    assert torch.equal(d4.transform(image, 1), turned)
    assert d4.transform_points(1.0, 0.0, 1) == (0.0, 1.0)
    flipped = torch.zeros(3, 3)
    flipped[0, 1] = 1
    assert torch.equal(d4.transform(turned, 4), flipped)
    assert d4.transform_spin2_values(0.1, 0.2, 1) == (-0.1, -0.2)
    assert d4.transform_spin2_values(0.1, 0.2, 4) == (0.1, -0.2)


@ALL
def test_content_moves_as_points_do(g: int) -> None:
    x, y = grid(9, 0.3, torch.float64)

    def blob(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-((x - 0.7) ** 2) - 2 * (y + 0.4) ** 2 + 0.3 * x * y)

    assert torch.equal(d4.transform(blob(x, y), g), blob(*d4.transform_points(x, y, d4.inverse(g))))

    # The gradient of a transformed scalar is the transformed gradient, and the second derivatives make a spin-2.
    def slopes(image: Tensor) -> tuple[Tensor, Tensor]:
        along_y, along_x = torch.gradient(image, spacing=0.3, dim=(-2, -1))
        return along_x, along_y

    ax, ay = slopes(blob(x, y))
    for ours, theirs in zip(slopes(d4.transform(blob(x, y), g)), d4.transform_vector(ax, ay, g)):
        close(ours, theirs)
    (xx, xy), (_, yy) = slopes(ax), slopes(ay)
    bx, by = d4.transform_vector(ax, ay, g)
    (uu, uv), (_, vv) = slopes(bx), slopes(by)
    for ours, theirs in zip(((uu - vv) / 2, uv), d4.transform_spin2((xx - yy) / 2, xy, g)):
        close(ours, theirs)


@pytest.mark.parametrize("bad", [-1, 8, 1.5, True, "1", None])
def test_anything_but_the_eight_elements_is_refused(bad: Any) -> None:
    for call in (lambda: d4.transform(torch.zeros(2, 2), bad), lambda: d4.inverse(bad), lambda: d4.compose(0, bad)):
        with pytest.raises(PhysicsError, match=r"^g must be an element 0\.\.7"):
            call()
    with pytest.raises(PhysicsError, match="must be square"):
        d4.transform(torch.zeros(2, 3), 1)


@DTYPES
@ALL
@pytest.mark.parametrize("n", [32, 33, 150])
def test_referee_16_d4_of_the_solver(n: int, g: int, dtype: torch.dtype) -> None:
    x, y = grid(n, 7.5 / n, dtype)
    kappa = torch.exp(-((x - 0.4) ** 2) - 2 * (y + 0.3) ** 2) + 0.1 * torch.rand(n, n, dtype=dtype)
    solver = lensing.PoissonSolver(n, 7.5 / n)
    turned = d4.transform(kappa, g)
    close(solver.potential(turned), d4.transform(solver.potential(kappa), g))
    for ours, theirs in zip(solver.deflection(turned), d4.transform_vector(*solver.deflection(kappa), g)):
        close(ours, theirs)


@DTYPES
@ALL
@pytest.mark.parametrize("n", [24, 25])
def test_referee_16_d4_of_the_splat_and_the_forward_lens(n: int, g: int, dtype: torch.dtype) -> None:
    bx, by = torch.randn(2, 20, 20, dtype=dtype)
    image, weights = torch.rand(2, 20, 20, dtype=dtype)
    source = torch.rand(n, n, dtype=dtype)
    cx, cy = d4.transform_vector(bx, by, g)
    turned, turned_weights = d4.transform(image, g), d4.transform(weights, g)
    for options in ({}, {"normalise": False}, {"min_coverage": 0.3}):
        plain = lensing.to_source_plane(image, bx, by, n, 1.2, weights=weights, **options)
        ours = lensing.to_source_plane(turned, cx, cy, n, 1.2, weights=turned_weights, **options)
        for a, b in zip(ours, plain):
            close(a, d4.transform(b, g))
    seen = lensing.to_image_plane(source, bx, by, 1.2)
    close(lensing.to_image_plane(d4.transform(source, g), cx, cy, 1.2), d4.transform(seen, g))


@DTYPES
@ALL
def test_d4_of_psf_binning_and_derivatives(g: int, dtype: torch.dtype) -> None:
    image = torch.rand(2, 30, 30, dtype=dtype)
    turned = d4.transform(image, g)
    close(lensing.convolve_psf(turned, 1.7), d4.transform(lensing.convolve_psf(image, 1.7), g))
    close(bin_pixels(turned, 3), d4.transform(bin_pixels(image, 3), g))
    ax, ay = image / 30
    close(
        lensing.determinant(lensing.jacobian_from_field(*d4.transform_vector(ax, ay, g), 0.1)),
        d4.transform(lensing.determinant(lensing.jacobian_from_field(ax, ay, 0.1)), g),
    )


PROFILES: dict[str, tuple[Callable, dict[str, float], str]] = {
    "sis": (lensing.sis, {"theta_E": 1.1, "x0": 0.21, "y0": -0.33}, "vector"),
    "sie": (lensing.sie, {"theta_E": 1.1, "q": 0.6, "phi": 0.4, "x0": 0.21, "y0": -0.33}, "vector"),
    "shear": (lensing.shear, {"gamma1": 0.11, "gamma2": -0.07}, "vector"),
    "point_mass": (lensing.point_mass, {"theta_E": 0.3, "x0": 0.21, "y0": -0.33}, "vector"),
    "rod": (lensing.rod, {"theta_E": 0.3, "half_length": 0.6, "phi": 0.4, "x0": 0.21, "y0": -0.33}, "vector"),
    "sis_potential": (referees.sis_potential, {"theta_E": 1.1, "x0": 0.21, "y0": -0.33}, "scalar"),
    "sie_convergence": (
        lensing.sie_convergence,
        {"theta_E": 1.1, "q": 0.6, "phi": 0.4, "x0": 0.21, "y0": -0.33},
        "scalar",
    ),
    "shear_potential": (referees.shear_potential, {"gamma1": 0.11, "gamma2": -0.07}, "scalar"),
    "rod_potential": (
        referees.rod_potential,
        {"theta_E": 0.3, "half_length": 0.6, "phi": 0.4, "x0": 0.2, "y0": 0.1},
        "scalar",
    ),
    "rod_convergence": (
        lensing.rod_convergence,
        {"theta_E": 0.3, "half_length": 0.6, "phi": 0.4, "x0": 0.2, "y0": 0.1, "smoothing": 0.2},
        "scalar",
    ),
    "sersic": (
        lensing.sersic,
        {"amplitude": 1.0, "R_e": 0.5, "n": 1.5, "q": 0.6, "phi": 0.4, "x0": 0.21, "y0": -0.33},
        "scalar",
    ),
    "sersic_ellipticity": (
        lensing.sersic_ellipticity,
        {"amplitude": 1.0, "R_e": 0.5, "n": 1.5, "e1": 0.2, "e2": -0.3, "x0": 0.21, "y0": -0.33},
        "scalar",
    ),
}


@DTYPES
@ALL
@pytest.mark.parametrize("name", PROFILES)
def test_d4_of_profiles_with_transformed_parameters(name: str, g: int, dtype: torch.dtype) -> None:
    function, parameters, kind = PROFILES[name]
    x, y = grid(31, 0.1, dtype)
    moved = dict(parameters)
    for first, second, action in (
        ("x0", "y0", d4.transform_points),
        ("gamma1", "gamma2", d4.transform_spin2_values),
        ("e1", "e2", d4.transform_spin2_values),
    ):
        if first in parameters:
            moved[first], moved[second] = action(parameters[first], parameters[second], g)  # type: ignore[assignment]
    if "phi" in parameters:
        moved["phi"] = referees.transform_angle(parameters["phi"], g)  # type: ignore[assignment]
    plain, turned = function(x, y, **parameters), function(x, y, **moved)
    # Rounding of the angle moves a point by eps r, which a point mass or a rod's end amplifies.
    if kind == "scalar":
        close(turned, d4.transform(plain, g))
    else:
        for ours, theirs in zip(turned, d4.transform_vector(*plain, g)):
            close(ours, theirs)


def test_ellipticity_is_spin_2_of_the_angle() -> None:
    for g in d4.ELEMENTS:
        e = lensing.ellipticity(torch.tensor(0.6, dtype=torch.float64), 0.4)
        moved = lensing.ellipticity(torch.tensor(0.6, dtype=torch.float64), referees.transform_angle(0.4, g))
        for ours, theirs in zip(moved, d4.transform_spin2_values(*e, g)):
            np.testing.assert_allclose(ours.item(), theirs.item(), atol=1e-15)
    assert math.isclose(referees.transform_angle(0.4, 1), 0.4 + math.pi / 2)


@DTYPES
@ALL
def test_whole_lens_is_equivariant(g: int, dtype: torch.dtype) -> None:
    """kappa -> alpha -> source -> image, through every differentiable step: the gradient in kappa turns with it."""
    n, h = 24, 0.15
    x, y = grid(n, h, dtype)
    kappa = 0.5 * torch.exp(-((x - 0.3) ** 2) - 2 * (y + 0.2) ** 2)
    image = torch.rand(n, n, dtype=dtype)
    solver = lensing.PoissonSolver(n, h)

    def loss_gradient(kappa: Tensor, image: Tensor) -> Tensor:
        kappa = kappa.detach().requires_grad_()
        ax, ay = solver.deflection(kappa)
        source, _ = lensing.to_source_plane(image, x - ax, y - ay, n, 1.6)
        seen = lensing.convolve_psf(lensing.to_image_plane(source, x - ax, y - ay, 1.6), 1.3)
        return torch.autograd.grad((seen - image).square().sum(), kappa)[0]

    plain = loss_gradient(kappa, image)
    turned = loss_gradient(d4.transform(kappa, g), d4.transform(image, g))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-2  # float32: rays on a pixel's edge may take either side
    assert plain.abs().max() > 0
    assert (turned - d4.transform(plain, g)).abs().max() < tolerance * plain.abs().max()
