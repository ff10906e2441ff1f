"""Non-physical arguments are refused by name and value, at the price of microseconds, and never under a transform."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import d4lens.lensing as lensing
from d4lens.errors import D4LensError, PhysicsError

X, Y = lensing.grid(8, 0.1, torch.float64)
ONES = torch.ones(8, 8, dtype=torch.float64)

GOOD: dict[str, dict[str, Any]] = {
    "sis": {"theta_E": 1.0, "x0": 0.1, "y0": 0.0},
    "sie": {"theta_E": 1.0, "q": 0.7, "phi": 0.3, "x0": 0.1, "y0": 0.0},
    "sie_convergence": {"theta_E": 1.0, "q": 0.7, "phi": 0.3},
    "shear": {"gamma1": 0.1, "gamma2": -0.1},
    "point_mass": {"theta_E": 0.1, "x0": 0.1, "y0": 0.0},
    "point_mass_convergence": {"theta_E": 0.1, "x0": 0.1, "y0": 0.0, "smoothing": 0.1},
    "point_masses": {"theta_E": ONES[0] / 9, "x0": ONES[0], "y0": ONES[1]},
    "rod": {"theta_E": 0.1, "half_length": 0.5, "phi": 0.2, "x0": 0.1, "y0": 0.0},
    "rod_convergence": {"theta_E": 0.1, "half_length": 0.5, "phi": 0.2, "x0": 0.1, "y0": 0.0, "smoothing": 0.1},
    "sersic": {"amplitude": 1.0, "R_e": 0.5, "n": 1.5, "q": 0.7, "phi": 0.1, "x0": 0.1, "y0": 0.0},
    "sersic_ellipticity": {"amplitude": 1.0, "R_e": 0.5, "n": 1.5, "e1": 0.1, "e2": 0.1, "x0": 0.1, "y0": 0.0},
}
BAD: dict[str, list[float]] = {
    "theta_E": [0.0, -1.0],
    "half_length": [0.0, -1.0],
    "R_e": [0.0, -1.0],
    "smoothing": [0.0, -0.1],
    "q": [0.0, -0.5, 1.5],
    "n": [0.0, 0.3, 11.0],
    "amplitude": [-1.0],
}
CASES = [
    (name, argument, value)
    for name, arguments in GOOD.items()
    for argument in arguments
    for value in [*BAD.get(argument, []), math.nan, math.inf]
    if not (name == "point_masses" and argument == "theta_E" and value == 0)  # zero is padding there
]


@pytest.mark.parametrize(("name", "argument", "value"), CASES)
def test_non_physical_parameter_is_refused_by_name_and_value(name: str, argument: str, value: float) -> None:
    function = getattr(lensing, name)
    function(X, Y, **GOOD[name])
    label = "e1\\^2|e1|e2" if argument in ("e1", "e2") else argument
    for bad in (value, torch.tensor(value), torch.tensor([[[0.5]], [[value]]])):
        with pytest.raises(PhysicsError, match=rf"^({label}).* not {re.escape(f'{value:g}')}"):
            function(X, Y, **{**GOOD[name], argument: bad})


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_coordinates_must_be_floating_point(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(PhysicsError, match=r"^x must be a floating-point tensor"):
        getattr(lensing, name)(X.to(dtype), Y, **GOOD[name])
    with pytest.raises(PhysicsError, match=r"^y must be a floating-point tensor"):
        getattr(lensing, name)(X, Y.to(dtype), **GOOD[name])


@pytest.mark.parametrize("value", ["1.0", None, [1.0, "a"], 1j, torch.tensor(1j)])
def test_a_parameter_that_is_no_real_number_is_refused(value: Any) -> None:
    with pytest.raises(PhysicsError, match=r"^theta_E must be"):
        lensing.sis(X, Y, value)


@pytest.mark.parametrize("value", [1, np.float32(1), np.float64(1), np.array([[1.0]]), True, [[1.0]]])
def test_numbers_of_any_kind_are_parameters(value: Any) -> None:
    torch.testing.assert_close(lensing.sis(X, Y, value)[0], lensing.sis(X, Y, 1.0)[0])


def test_errors_are_the_projects_and_value_errors() -> None:
    assert issubclass(PhysicsError, D4LensError)
    assert issubclass(PhysicsError, ValueError)


@pytest.mark.parametrize("n", [0, 7, -3, 8.0, 8.5, True, "8", None, math.nan])
def test_too_few_pixels_are_refused(n: Any) -> None:
    for call in (
        lambda: lensing.grid(n, 0.1),
        lambda: lensing.PoissonSolver(n, 0.1),
        lambda: lensing.to_source_plane(ONES, X, Y, n, 1.0),
    ):
        with pytest.raises(PhysicsError, match=rf"n_pixels must be .*not {re.escape(repr(n))}"):
            call()


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
def test_lengths_must_be_positive(value: float) -> None:
    for argument, call in {
        "pixel_scale": [
            lambda: lensing.grid(8, value),
            lambda: lensing.PoissonSolver(8, value),
            lambda: lensing.jacobian_from_field(X, Y, value),
            lambda: lensing.magnification_from_field(X, Y, value),
        ],
        "half_width": [
            lambda: lensing.to_source_plane(ONES, X, Y, 8, value),
            lambda: lensing.to_image_plane(ONES, X, Y, value),
        ],
        "sigma_pixels": [
            lambda: lensing.gaussian_psf(value),
            lambda: lensing.convolve_psf(ONES, value),
            lambda: lensing.convolve_psf(ONES, torch.tensor([1.0, value])),
        ],
    }.items():
        for attempt in call:
            with pytest.raises(PhysicsError, match=rf"^{argument} must be .*not {re.escape(f'{value:g}')}"):
                attempt()


def test_other_bad_input_is_refused() -> None:
    solver = lensing.PoissonSolver(8, 0.1)
    for match, attempt in {
        "dtype must be": lambda: lensing.grid(8, 0.1, torch.int32),
        "kappa must have shape": lambda: solver.deflection(torch.zeros(3, 8, 9)),
        "kappa must have at least 2 axes": lambda: solver.potential(torch.zeros(8)),
        "kappa must be a floating-point": lambda: solver.potential(torch.zeros(8, 8, dtype=torch.int64)),
        "image must be a floating-point": lambda: lensing.convolve_psf(torch.ones(8, 8, dtype=torch.int64), 1.0),
        "image must have the rays' .8, 8. pixels": lambda: lensing.to_source_plane(torch.ones(9, 9), X, Y, 8, 1.0),
        "weights must be at least 0, not -1": lambda: lensing.to_source_plane(ONES, X, Y, 8, 1.0, weights=-ONES),
        "weights must have the rays'": lambda: lensing.to_source_plane(ONES, X, Y, 8, 1.0, weights=ONES[:4]),
        "source must be square": lambda: lensing.to_image_plane(ONES[:4], X, Y, 1.0),
        "source's side must be": lambda: lensing.to_image_plane(ONES[:4, :4], X, Y, 1.0),
        "alpha_y must have the sides": lambda: lensing.jacobian_from_field(X, ONES[:, :4], 0.1),
        "side of alpha_x must be": lambda: lensing.jacobian_from_field(X[:4], X[:4], 0.1),
        r"e1\^2 \+ e2\^2 must be below 1, not 1.28": lambda: lensing.sersic_ellipticity(X, Y, 1, 1, 1, 0.8, -0.8),
        r"e1\^2 \+ e2\^2 must be below 1, not 1": lambda: lensing.axis_ratio_and_angle(1.0, 0.0),
        "q must be above 0, not 0": lambda: lensing.ellipticity(0.0, 0.0),
    }.items():
        with pytest.raises(PhysicsError, match=match):
            attempt()


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 3))
def test_any_float_is_either_in_range_or_refused(value: float, place: int) -> None:
    theta_E = torch.full((4, 1, 1), 0.5, dtype=torch.float64)
    theta_E[place] = value
    if 0 < value < math.inf:
        lensing.sis(X, Y, theta_E)
    else:
        with pytest.raises(PhysicsError, match="theta_E"):
            lensing.sis(X, Y, theta_E)


def test_unchecked_trusts_the_caller_and_ends_with_the_block() -> None:
    with lensing.unchecked():
        lensing.sis(X, Y, torch.tensor(-1.0))
        with lensing.unchecked():
            pass
        lensing.sis(X, Y, torch.tensor(-1.0))
    with pytest.raises(PhysicsError):
        lensing.sis(X, Y, torch.tensor(-1.0))


def test_a_check_is_one_reduction_of_a_tensor_and_nothing_of_a_number() -> None:
    """Counted, not timed: operators that the checks add to a call."""

    class Count(TorchDispatchMode):
        operators = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
            self.operators += 1
            return function(*arguments, **(options or {}))

    def operators(theta_E: Any) -> int:
        with Count() as count:
            lensing.sis(X, Y, theta_E)
        return count.operators

    theta_E = torch.ones(16, 1, 1, dtype=torch.float64)
    with lensing.unchecked():
        bare, bare_number = operators(theta_E), operators(1.0)
    assert operators(theta_E) - bare <= 4  # detach, aminmax and the two values read
    assert operators(1.0) == bare_number


def test_values_that_cannot_be_read_are_passed_through() -> None:
    theta_E = torch.tensor([0.5, 1.0], dtype=torch.float64)
    mapped = torch.func.vmap(lambda t: lensing.sis(X, Y, t)[0])(theta_E)
    torch.testing.assert_close(mapped, lensing.sis(X, Y, theta_E[:, None, None])[0])
    assert lensing.sis(X.to("meta"), Y.to("meta"), theta_E[:, None, None].to("meta"))[0].shape == (2, 8, 8)
    assert lensing.sis(X, Y, torch.zeros(0, 1, 1))[0].shape == (0, 8, 8)


def test_whole_lens_compiles_into_one_graph() -> None:
    solver = lensing.PoissonSolver(8, 0.1)

    def lens(theta_E: torch.Tensor, kappa: torch.Tensor) -> torch.Tensor:
        ax, ay = lensing.sie(X, Y, theta_E, 0.7, 0.3)
        bx, by = solver.deflection(kappa)
        source, _ = lensing.to_source_plane(kappa, X - ax - bx, Y - ay - by, 8, 1.0)
        seen = lensing.convolve_psf(lensing.to_image_plane(source, X - ax, Y - ay, 1.0), 1.3)
        return seen + lensing.sersic(X, Y, theta_E, 0.4, 1.0, 0.7, 0.2)

    inputs = torch.tensor(0.5, dtype=torch.float64), torch.rand(8, 8, dtype=torch.float64)
    compiled = torch.compile(lens, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), lens(*inputs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_gpu_agrees_with_the_cpu() -> None:
    solver = lensing.PoissonSolver(64, 0.1)
    kappa = torch.rand(3, 64, 64, dtype=torch.float64)

    def lens(device: str) -> list[torch.Tensor]:
        x, y = lensing.grid(64, 0.1, torch.float64, device)
        theta_E = torch.tensor([0.5, 0.8, 1.1], dtype=torch.float64, device=device)[:, None, None]
        image = lensing.sersic(x, y, 1.0, 0.5, 1.5, 0.7, 0.3)
        psi, (ax, ay) = solver.to(device).potential(kappa.to(device)), solver.deflection(kappa.to(device))
        bx, by = lensing.sie(x, y, theta_E, 0.7, 0.3)
        cx, cy = lensing.rod(x, y, 0.3, 0.5, 0.2)
        source, coverage = lensing.to_source_plane(image, x - ax - bx - cx, y - ay - by - cy, 32, 2.0)
        seen = lensing.convolve_psf(lensing.to_image_plane(source, x - bx, y - by, 2.0), 1.7)
        return [psi, ax, ay, bx, cy, source, coverage, seen]

    for here, there in zip(lens("cpu"), lens("cuda")):
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), here, rtol=1e-10, atol=1e-10)
