import pytest
import torch

from d4lens.macrofit.source_modes import SourceModes


def test_modes_have_the_covariance_they_promise():
    modes = SourceModes(n_modes=2000, half_width=0.6, step=0.06, length=0.12, amplitude=0.7, dtype=torch.float64)
    u, v = torch.tensor([0.0, 0.1, -0.21, 0.33]).double(), torch.tensor([0.0, -0.07, 0.18, 0.3]).double()
    columns = modes.at(u, v)
    squared = (u[:, None] - u) ** 2 + (v[:, None] - v) ** 2
    assert torch.allclose(columns @ columns.T, 0.49 * torch.exp(-squared / (2 * 0.12**2)), atol=2e-3)


def test_few_modes_keep_the_most_variance_that_so_many_can():
    modes = SourceModes(n_modes=60, half_width=0.6, step=0.06, length=0.12)
    nodes = torch.linspace(-0.6, 0.6, 21, dtype=torch.float64)
    y, x = torch.meshgrid(nodes, nodes, indexing="ij")
    squared = (x.flatten()[:, None] - x.flatten()) ** 2 + (y.flatten()[:, None] - y.flatten()) ** 2
    values = torch.linalg.eigvalsh(torch.exp(-squared / (2 * 0.12**2)))
    assert modes.variance_kept == pytest.approx(float(values[-60:].sum() / values.sum()), abs=1e-6)


def test_slopes_are_those_of_the_functions():
    modes = SourceModes(dtype=torch.float64)
    u = torch.linspace(-1.3, 1.3, 401, dtype=torch.float64)
    values, slopes = modes.along(u, slopes=True)
    ahead, behind = (modes.along(u + step)[0] for step in (2e-3, -2e-3))
    assert slopes is not None
    assert (slopes - (ahead - behind) / 4e-3).abs().max() < 0.03 * slopes.abs().max()
    assert torch.equal(values, modes.along(u)[0])


def test_nothing_is_left_far_outside():
    far = torch.tensor([-50.0, -1.8, 1.8, 50.0])
    assert (SourceModes().at(far, far) == 0).all()


def test_a_table_of_coefficients_is_the_sum_of_modes():
    modes = SourceModes(n_modes=50)
    coefficients = torch.randn(50, generator=torch.Generator().manual_seed(0))
    u, v = torch.rand(2, 30, generator=torch.Generator().manual_seed(1)) - 0.5
    summed = ((modes.along(u)[0] @ modes.table(coefficients)) * modes.along(v)[0]).sum(1)
    assert torch.allclose(summed, modes.at(u, v) @ coefficients, atol=1e-5)
