import pytest
import torch

from d4lens.lensing import d4, point_mass
from d4lens.macrofit import FIT_COLUMNS, fit_smooth_lens, preset_model, significance_maps

TRUTH = {"theta_E": 1.3, "gamma1": 0.12, "gamma2": -0.01, "source_x": 0.1, "source_y": -0.15, "e1": 0.1, "e2": 0.03}


@pytest.fixture(scope="module")
def model():
    return preset_model("deeplense", binning=2)


def lensed(model, masses, seed, n=1):
    """Noisy counts (n, N, N) of one lens with point masses (theta_E squared, x, y), through the model's own optics."""
    truth = torch.tensor([[TRUTH[name] for name in FIT_COLUMNS]], dtype=torch.float64)
    native = preset_model("deeplense")
    x, y = native.pixel_centres()
    shift_x, shift_y = torch.zeros_like(x), torch.zeros_like(y)
    for squared, x0, y0 in masses:
        a, b = point_mass(x, y, squared**0.5, x0, y0)
        shift_x, shift_y = shift_x + a, shift_y + b
    # A deflection beyond the smooth lens moves the source seen at each pixel: evaluate the lens at displaced sources.
    smooth = native._deflection

    def deflection(p, wanted):
        alpha_x, alpha_y, slopes = smooth(p, wanted)
        return alpha_x + shift_x, alpha_y + shift_y, slopes

    native._deflection = deflection
    mean = native.image(truth)[0].reshape(75, 2, 75, 2).sum((1, 3))
    generator = torch.Generator().manual_seed(seed)
    return torch.poisson(mean.expand(n, -1, -1).contiguous(), generator=generator)


def found(model, counts):
    return significance_maps(counts, fit_smooth_lens(counts, model).parameters, model)


def test_noise_alone_has_the_standard_deviation_it_claims(model):
    maps = found(model, lensed(model, [], seed=1, n=48))
    x, y = model.pixel_centres()
    on_the_arcs = torch.hypot(x, y) < 2.0
    assert maps[:, on_the_arcs].std() == pytest.approx(1.0, abs=0.05)
    assert maps[:, on_the_arcs].mean() == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("place", [(1.2, 0.3), (-0.5, -1.2)])
def test_a_mass_peaks_where_it_stands_and_squares_to_the_chi_squared_it_costs(model, place):
    counts = lensed(model, [(0.006, *place)], seed=2)
    result = fit_smooth_lens(counts, model)
    found_map = significance_maps(counts, result.parameters, model)[0]
    row, column = divmod(int(found_map.argmax()), 75)
    x, y = model.pixel_centres()
    assert abs(x[row, column] - place[0]) <= 0.15
    assert abs(y[row, column] - place[1]) <= 0.15
    gained = (float(result.chi2) - float(fit_smooth_lens(lensed(model, [], seed=2), model).chi2)) * 75**2
    assert found_map.max() > 5
    # First order in the mass, and the noise of two fits: a quarter.
    assert float(found_map.max()) ** 2 == pytest.approx(gained, rel=0.25)


def test_pixels_without_data_carry_no_weight(model):
    counts = lensed(model, [(0.006, 1.2, 0.3)], seed=2)
    hidden = torch.zeros(75, 75, dtype=torch.bool)
    hidden[36:44, 45:54] = True
    gone, parameters = counts.masked_fill(hidden, torch.nan), fit_smooth_lens(counts, model).parameters
    seen = significance_maps(gone, parameters, model)
    assert torch.isfinite(seen).all()
    # The mass is behind the mask: less of what shows it is left.
    assert significance_maps(counts, parameters, model).max() > 1.3 * seen.max()
    # On a lens without noise but for the hidden pixels nothing is found anywhere.
    smooth = model.image(parameters)
    smooth[0][hidden] += 500
    assert significance_maps(smooth, parameters, model).max() > 5
    assert significance_maps(smooth.masked_fill(hidden, torch.nan), parameters, model).abs().max() < 1e-2


def test_it_is_a_scalar_under_the_symmetries_of_the_square(model):
    counts = lensed(model, [(0.006, 1.2, 0.3)], seed=3)
    plain = found(model, counts)
    for g in d4.ELEMENTS:
        turned = found(model, d4.transform(counts, g).contiguous())
        # Both fits end within a tenth of a standard deviation of the optimum.
        assert (turned - d4.transform(plain, g)).abs().max() < 0.2


def test_an_image_s_bytes_do_not_depend_on_the_others(model):
    counts = lensed(model, [(0.006, 1.2, 0.3)], seed=4, n=3)
    parameters = fit_smooth_lens(counts, model).parameters
    together = significance_maps(counts, parameters, model)
    assert torch.equal(together[1:2], significance_maps(counts[1:2], parameters[1:2], model))


def test_no_image_gives_no_map(model):
    assert significance_maps(torch.empty(0, 75, 75), torch.empty(0, 7), model).shape == (0, 75, 75)
