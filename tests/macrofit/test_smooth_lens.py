import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d4lens import lensing, simulator
from d4lens.errors import PhysicsError
from d4lens.lensing import d4
from d4lens.macrofit import FIT_COLUMNS, PARAMETERS, SmoothLensModel, preset_model
from d4lens.macrofit.smooth_lens import ONE_GAUSSIAN, Prior, bands
from d4lens.observation import Observation

OBSERVATION = Observation(32, 0.11, 0.13, 7.0)
CONSTANTS = {"n": 1.5, "R_e": 0.5, "amplitude": 100.0}
VALUES = {
    "theta_E": 1.2,
    "gamma1": 0.1,
    "gamma2": -0.03,
    "source_x": 0.1,
    "source_y": -0.2,
    "e1": 0.2,
    "e2": 0.1,
    "lens_e1": 0.12,
    "lens_e2": -0.05,
    "lens_x": 0.03,
    "lens_y": 0.02,
    "n": 1.5,
    "R_e": 0.5,
    "amplitude": 100.0,
    "sky": 10.0,
    "psf_sigma": 0.12,
}


WINGS = ((0.75, 1.0), (0.25, 2.5))


def independent_image(values, observation):
    """The same lens from the engine's pure functions, one after the other."""
    x, y = lensing.grid(observation.n_pixels, observation.pixel_scale, torch.float64)
    exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    q, phi = lensing.axis_ratio_and_angle(exact["lens_e1"], exact["lens_e2"])
    ax, ay = lensing.sie(x, y, values["theta_E"], q, phi, values["lens_x"], values["lens_y"])
    sx, sy = lensing.shear(x, y, values["gamma1"], values["gamma2"])
    q, phi = lensing.axis_ratio_and_angle(exact["e1"], exact["e2"])
    light = lensing.sersic(
        x - ax - sx,
        y - ay - sy,
        values["amplitude"],
        values["R_e"],
        values["n"],
        q,
        phi,
        values["source_x"],
        values["source_y"],
    )
    return lensing.convolve_psf(light, values["psf_sigma"] / observation.pixel_scale) + values["sky"]


def everything_free(dtype=torch.float64, **options):
    return SmoothLensModel(OBSERVATION, CONSTANTS, PARAMETERS, dtype=dtype, **options)


def row(values=VALUES, names=PARAMETERS):
    return torch.tensor([[values[name] for name in names]], dtype=torch.float64)


def test_the_image_is_what_the_engines_pure_functions_make():
    image = everything_free().image(row())[0]
    torch.testing.assert_close(image, independent_image(VALUES, OBSERVATION), rtol=1e-12, atol=1e-9)


def test_the_image_is_what_the_simulator_renders():
    preset = simulator.preset("deeplense")
    truth = simulator.draw(preset, 0, range(4), "none")
    parameters = torch.tensor(truth.images[list(FIT_COLUMNS)].to_numpy(float))
    exact = simulator.render(truth, preset, noise=False)
    image = preset_model("deeplense", dtype=torch.float64).image(parameters)
    torch.testing.assert_close(image, exact, rtol=1e-9, atol=1e-7)  # the table keeps 12 digits
    single = preset_model("deeplense").image(parameters)
    # A thousandth of the noise, in float32, at the brightest pixel.
    assert ((single - exact).abs() / exact.sqrt()).max() < 5e-3


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_binned_counts_are_sums_of_native_pixels_and_the_remainder_is_cropped(factor):
    fine = everything_free().image(row())
    n = OBSERVATION.n_pixels // factor
    expected = fine[:, : n * factor, : n * factor].reshape(1, n, factor, n, factor).sum((2, 4))
    image = everything_free(binning=factor).image(row())
    torch.testing.assert_close(image, expected, rtol=1e-12, atol=1e-9)


def test_coarse_sampling_keeps_the_counts_of_a_smooth_image():
    values = {**VALUES, "psf_sigma": 0.2, "R_e": 1.5, "n": 0.6}
    fine, coarse = (everything_free(binning=2, sampling=s).image(row(values)) for s in (1, 2))
    assert abs(fine.sum() / coarse.sum() - 1) < 4e-3
    assert (fine - coarse).abs().max() > 1e-3


@pytest.mark.parametrize("binning", [1, 2])
@pytest.mark.parametrize("rounder", [False, True])
@pytest.mark.parametrize("psf_shape", [ONE_GAUSSIAN, WINGS])
def test_every_derivative_is_the_difference_quotient(binning, rounder, psf_shape):
    values = {**VALUES, "lens_e1": 0.002, "lens_e2": -0.001} if rounder else VALUES
    model, parameters = everything_free(binning=binning, psf_shape=psf_shape), row(values)
    jacobian = model.image_and_jacobian(parameters)[0, 1:]
    for i, name in enumerate(PARAMETERS):
        step = torch.zeros_like(parameters)
        step[0, i] = 1e-5 * max(1.0, abs(parameters[0, i].item()))
        quotient = (model.image(parameters + step) - model.image(parameters - step))[0] / (2 * step.sum())
        error = (jacobian[i] - quotient).abs().max() / quotient.abs().max()
        assert error < 2e-6, name


@pytest.mark.parametrize("free", [PARAMETERS, FIT_COLUMNS])
def test_a_psf_of_several_gaussians_makes_the_sum_of_their_images(free):
    def light(sigma, psf_shape=ONE_GAUSSIAN):
        values = {**VALUES, "psf_sigma": sigma}
        model = SmoothLensModel(OBSERVATION, values, free, binning=2, psf_shape=psf_shape, dtype=torch.float64)
        return model.image(row(values, free)) - 4 * values["sky"]

    whole = light(0.12, WINGS)
    torch.testing.assert_close(whole, 0.75 * light(0.12) + 0.25 * light(0.3), rtol=1e-9, atol=1e-9)
    assert (whole - light(0.12)).abs().max() > 0.02 * whole.max()


def test_bands_are_the_matrix_also_where_rows_are_empty():
    matrix = torch.zeros(9, 12)
    matrix[3, 2:5], matrix[8, 11] = torch.tensor([1.0, 2.0, 3.0]), 4.0
    values = torch.arange(24.0).view(12, 2)
    found = torch.cat([band @ values[take] for take, band in bands(matrix)])
    assert torch.equal(found, matrix @ values)


def test_a_round_lens_has_the_derivatives_of_an_almost_round_one():
    blunt = {**VALUES, "n": 0.6, "R_e": 1.0, "lens_e2": 0.0}
    round_, almost = row({**blunt, "lens_e1": 0.0}), row({**blunt, "lens_e1": 2e-3})
    model = everything_free()
    here, there = model.image_and_jacobian(round_)[0, 1:], model.image_and_jacobian(almost)[0, 1:]
    assert torch.isfinite(here).all()
    assert ((here - there).abs().amax((1, 2)) < 0.02 * there.abs().amax((1, 2))).all()


def test_the_sis_short_cut_is_the_sie_of_axis_ratio_one():
    fast = SmoothLensModel(OBSERVATION, CONSTANTS, dtype=torch.float64)
    general = everything_free()
    values = {**VALUES, "lens_e1": 0.0, "lens_e2": 0.0, "lens_x": 0.0, "lens_y": 0.0, "sky": 7.0, "psf_sigma": 0.13}
    one, other = fast.image_and_jacobian(row(values, FIT_COLUMNS)), general.image_and_jacobian(row(values))[:, :8]
    torch.testing.assert_close(one[:, 0], other[:, 0], rtol=1e-12, atol=1e-9)
    # At e = 0 the SIE has the derivative by theta_E of an ellipticity of a thousandth.
    torch.testing.assert_close(one[:, 1:], other[:, 1:], rtol=1e-3, atol=0.01 * float(one[:, 1].abs().max()))


@settings(max_examples=25, deadline=None)
@given(g=st.sampled_from(d4.ELEMENTS), turn=st.floats(0, math.pi), e=st.floats(0, 0.4), sx=st.floats(-0.4, 0.4))
def test_the_model_commutes_with_the_squares_symmetries(g, turn, e, sx):
    values = {**VALUES, "lens_e1": e * math.cos(turn), "lens_e2": e * math.sin(turn), "source_x": sx}
    image = everything_free().image(row(values))[0]
    moved = dict(values)
    for pair in (("gamma1", "gamma2"), ("e1", "e2"), ("lens_e1", "lens_e2")):
        moved |= dict(zip(pair, d4.transform_spin2_values(*(values[name] for name in pair), g)))
    for pair in (("source_x", "source_y"), ("lens_x", "lens_y")):
        moved |= dict(zip(pair, d4.transform_points(*(values[name] for name in pair), g)))
    torch.testing.assert_close(everything_free().image(row(moved))[0], d4.transform(image, g), rtol=1e-8, atol=1e-7)


def test_an_odd_image_with_a_pixel_on_the_lens_centre_is_finite():
    model = SmoothLensModel(Observation(33, 0.11, 0.13, 7.0), CONSTANTS)
    stack = model.image_and_jacobian(torch.tensor([[1.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert torch.isfinite(stack).all()


def test_a_copy_has_all_that_is_not_replaced():
    own = {"free": ("theta_E", "n"), "binning": 4, "sampling": 2, "psf_shape": WINGS, "dtype": torch.float64}
    lens = SmoothLensModel(OBSERVATION, CONSTANTS, priors={"n": Prior(0.6, 5.0, 1.0, 0.5)}, **own)
    assert lens.replaced().to_dict() == lens.to_dict()
    other = lens.replaced(constants={**CONSTANTS, "n": 3.0}).to_dict()
    assert other == lens.to_dict() | {"constants": lens.constants | {"n": 3.0}}
    assert lens.at(4, 1).to_dict() == lens.to_dict() | {"sampling": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"free": ("theta_e",)}, "'theta_e' is no parameter"),
        ({"constants": {"n": 1.0, "R_e": 0.5}}, "amplitude has no value"),
        ({"constants": {**CONSTANTS, "n": math.nan}}, "n must be above 0 and finite, not nan"),
        ({"psf_shape": [(0.5, 1.0), (0.5, 0.0)]}, "psf_shape must be shares and widths above 0"),
        ({"psf_shape": []}, "psf_shape must be shares and widths above 0"),
        ({"psf_shape": [(0.5, 1.0), (0.4, 3.0)]}, "the shares of psf_shape must sum to 1"),
        ({"free": ("gamma1",)}, "theta_E has no value"),
        ({"binning": 2, "sampling": 3}, "sampling must divide binning"),
        ({"binning": 8}, "leaves 4 pixels"),
    ],
)
def test_what_makes_no_model_is_named(options, words):
    options = {"constants": CONSTANTS, **options}
    with pytest.raises(PhysicsError, match=words):
        SmoothLensModel(OBSERVATION, **options)


def test_parameters_of_another_number_are_refused():
    with pytest.raises(PhysicsError, match=r"parameters must be \(B, 7\)"):
        SmoothLensModel(OBSERVATION, CONSTANTS).image(torch.zeros(2, 6))
