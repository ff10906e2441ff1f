import pytest
import torch

from d4lens import simulator
from d4lens.errors import D4LensError
from d4lens.macrofit import FIT_COLUMNS, PARAMETERS, fit_smooth_lens, preset_model, pseudo_counts
from d4lens.observation import Observation


def test_what_deeplense_fixes_is_known_and_the_rest_is_free():
    model = preset_model("deeplense")
    priors = simulator.PRESETS["deeplense"].priors
    assert model.free == FIT_COLUMNS
    assert model.constants["n"] == priors["sersic_n"].low
    assert model.constants["R_e"] == priors["sersic_R_e"].low
    assert model.constants["amplitude"] == priors["sersic_amplitude"].low
    assert model.constants["lens_e1"] == 0.0
    assert model.observation == simulator.PRESETS["deeplense"].observation


def test_brightness_goes_with_the_area_of_a_pixel():
    finer = Observation(300, 0.025, 0.08625, 2.5)
    parameters = torch.tensor([[1.2, 0.1, 0.0, 0.1, -0.1, 0.1, 0.0]])
    fine = preset_model("deeplense", finer, 2, dtype=torch.float64).image(parameters)
    coarse = preset_model("deeplense", dtype=torch.float64).image(parameters)
    assert abs(fine.sum() / coarse.sum() - 1) < 1e-3


def test_a_freed_constant_has_a_gaussian_about_the_presets_value():
    model = preset_model("deeplense", free=PARAMETERS)
    assert model.priors["n"].mean == 1.5
    assert 0 < model.priors["n"].sigma < 1
    assert model.priors["theta_E"].sigma == float("inf")


def test_model_i_frees_the_photon_scale_and_fits():
    preset = simulator.preset("model-i", {"corrected": True, "background_rms": 0.0})
    model = preset_model("model-i")
    assert {"amplitude", "sky"} < set(model.free)
    truth = simulator.draw(preset, 1, range(6), "none")
    # Photon noise alone on a known background: DeepLenseSim's own noise is not Poisson's.
    counts = torch.poisson(simulator.render(truth, preset, noise=False) + 5)
    result = fit_smooth_lens(counts, model, max_starts=6)
    exact = torch.tensor(truth.images[list(FIT_COLUMNS)].to_numpy(float))
    assert abs(result.chi2.mean() - 1) < 0.02
    assert ((result.columns - exact).abs()[:, 0] < 0.01).all()


def test_pseudo_counts_have_a_corner_of_poisson_noise_and_a_scale():
    counts = torch.poisson(torch.full((3, 64, 64), 20.0)).double()
    counts[:, 20:40, 20:40] += 300
    low, high = counts.amin((1, 2), keepdim=True), counts.amax((1, 2), keepdim=True)
    back = pseudo_counts((counts - low) / (high - low))
    scale = 1000 / (high - low).flatten()
    for image, s in zip(back, scale):
        corners = torch.stack(
            [image[i, j].flatten() for i in (slice(8), slice(-8, None)) for j in (slice(8), slice(-8, None))]
        )
        darkest = corners[corners.mean(1).argmin()]
        assert abs(darkest.mean() / darkest.var() - 1) < 1e-3
        assert abs(darkest.var() / (20 * s**2) - 1) < 0.6
    flat = pseudo_counts(torch.zeros(1, 64, 64))
    assert torch.equal(flat, torch.ones(1, 64, 64))


def test_an_unknown_preset_is_refused():
    with pytest.raises(D4LensError, match="no preset is called 'model-x'"):
        preset_model("model-x")
