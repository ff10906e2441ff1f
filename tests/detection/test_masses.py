import pytest
import torch

from d4lens.detection import LensWithMasses
from d4lens.macrofit import preset_model
from d4lens.simulator import preset
from d4lens.studies import physical_limit


@pytest.mark.parametrize("profile", ["point", "sis"])
@pytest.mark.parametrize("free", [None, ("theta_E", "source_x", "source_y", "lens_e1", "lens_e2")])
def test_derivatives_are_those_of_the_image(profile, free):
    model = LensWithMasses(
        preset_model("deeplense", binning=2, free=free, dtype=torch.float64), [(1.0, 0.5), (0.2, -1.1)], 1.27, profile
    )
    known = {"theta_E": 1.27, "lens_e1": 0.05, "lens_e2": 0.03, "source_x": 0.1}
    begin = [known.get(name, 0.02) for name in model.lens.free] + [0.01, 1.013, 0.522, 0.02, 0.22, -1.13]
    at = torch.tensor([begin], dtype=torch.float64)
    slopes = model.image_and_jacobian(at)[0, 1:]
    for k in range(len(model.lens.free), at.shape[1]):
        step = torch.zeros_like(at)
        step[0, k] = 1e-6
        expected = (model.image(at + step) - model.image(at - step))[0] / 2e-6
        assert (slopes[k] - expected).abs().max() < 1e-6 * expected.abs().max()


def test_a_point_mass_makes_the_simulators_image():
    made_by = preset("deeplense")
    truth = physical_limit.one_subhalo(made_by, 3, [1e10], [1.0], [0.7])
    row, mass = truth.images.iloc[0], truth.subhalos.iloc[0]
    lens = preset_model("deeplense", binning=2, dtype=torch.float64)
    model = LensWithMasses(lens, [(mass.x, mass.y)], row.theta_E)
    e = (1 - row.source_q) / (1 + row.source_q)
    angle = torch.tensor(2 * row.source_phi)
    values = {"e1": e * float(angle.cos()), "e2": e * float(angle.sin())}
    begin = [values.get(name, row.get(name)) for name in lens.free] + [mass.theta_E**2, mass.x, mass.y]
    found = model.image(torch.tensor([begin], dtype=torch.float64))
    expected = physical_limit.mean_counts(truth, made_by, 2)
    # The softening shows in the one native pixel that the mass is nearest to.
    assert ((found - expected).abs() / expected.sqrt()).max() < 0.3


def test_without_masses_it_is_the_lens(images, lens):
    _, _, result = images
    assert torch.equal(LensWithMasses(lens, [], 1.27).image(result.parameters[:1]), lens.image(result.parameters[:1]))
