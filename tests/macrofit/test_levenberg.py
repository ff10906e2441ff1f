import math

import torch

from d4lens.macrofit.levenberg import minimise

WIDE = torch.tensor([-10.0, -10.0], dtype=torch.float64), torch.tensor([10.0, 10.0], dtype=torch.float64)


def least_squares(residuals):
    """(objective, score, curvature) of sum r(p)^2 by autograd."""

    def evaluate(rows, parameters):
        r = residuals(rows, parameters)
        jac = torch.stack(
            [torch.autograd.functional.jacobian(lambda p, i=i: residuals(rows[i : i + 1], p[None])[0], parameters[i])
             for i in range(len(rows))]
        )  # fmt: skip
        return (r * r).sum(1), -(jac.mT @ r[..., None])[..., 0], jac.mT @ jac

    return evaluate


def rosenbrock(rows, p):
    return torch.stack([1 - p[:, 0], 10 * (p[:, 1] - p[:, 0] ** 2)], 1)


def test_rosenbrocks_valley_from_several_starts():
    start = torch.tensor([[-1.2, 1.0], [3.0, -4.0], [0.0, 0.0]], dtype=torch.float64)
    end = minimise(least_squares(rosenbrock), start, *WIDE, max_iterations=200, tolerance=1e-16)
    assert end.converged.all()
    torch.testing.assert_close(end.parameters, torch.ones_like(start), rtol=1e-6, atol=1e-6)


def test_a_row_does_not_depend_on_its_company():
    start = torch.tensor([[-1.2, 1.0], [3.0, -4.0], [0.0, 0.0]], dtype=torch.float64)
    evaluate = least_squares(rosenbrock)
    together = minimise(evaluate, start, *WIDE, max_iterations=9, tolerance=1e-12)
    for i in range(3):
        alone = minimise(evaluate, start[i : i + 1], *WIDE, max_iterations=9, tolerance=1e-12)
        assert torch.equal(alone.parameters[0], together.parameters[i])
        assert torch.equal(alone.iterations[0], together.iterations[i])


def test_a_wall_holds_its_parameter_and_frees_the_other():
    upper = torch.tensor([0.5, 10.0], dtype=torch.float64)
    end = minimise(
        least_squares(rosenbrock), torch.zeros(1, 2, dtype=torch.float64), WIDE[0], upper,
        max_iterations=100, tolerance=1e-14,
    )  # fmt: skip
    assert end.converged.all()
    torch.testing.assert_close(end.parameters, torch.tensor([[0.5, 0.25]], dtype=torch.float64))


def test_a_parameter_the_data_say_nothing_of_stays():
    end = minimise(
        least_squares(lambda rows, p: (p[:, :1] - 2).expand(-1, 3)), torch.tensor([[0.0, 3.0]], dtype=torch.float64),
        *WIDE, max_iterations=50, tolerance=1e-12,
    )  # fmt: skip
    assert end.converged.all()
    torch.testing.assert_close(end.parameters, torch.tensor([[2.0, 3.0]], dtype=torch.float64))


def test_a_kink_is_an_end_and_not_a_loop():
    # |p| has slope 1 on both sides: g.H^-1.g never falls, only ever shorter steps do.
    def evaluate(rows, p):
        value = 100 * p.abs().sum(1)
        return value, -50 * p.sign(), torch.eye(2, dtype=torch.float64).expand(len(p), 2, 2)

    start = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    end = minimise(evaluate, start, *WIDE, max_iterations=60, tolerance=1e-2)
    assert end.converged.all()
    assert end.iterations[0] < 60
    assert end.objective[0] < 1.0


def test_values_that_are_not_finite_reject_the_step_and_never_spread():
    def residuals(rows, p):
        r = torch.stack([p[:, 0].log(), p[:, 1] - 1], 1)  # log of a negative number: NaN
        return torch.where(rows[:, None] == 1, math.nan, r)

    start = torch.tensor([[5.0, 0.0], [5.0, 0.0], [4.0, 2.0]], dtype=torch.float64)
    end = minimise(least_squares(residuals), start, *WIDE, max_iterations=60, tolerance=1e-12)
    assert end.converged.tolist() == [True, False, True]
    torch.testing.assert_close(end.parameters[[0, 2]], torch.ones(2, 2, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert torch.equal(end.parameters[1], start[1])
    assert end.iterations[1] == 0


def test_the_clock_ends_a_row_unconverged():
    end = minimise(least_squares(rosenbrock), torch.tensor([[-1.2, 1.0]], dtype=torch.float64), *WIDE,
                   max_iterations=2, tolerance=1e-16)  # fmt: skip
    assert not end.converged.any()
    assert end.iterations.tolist() == [2]
