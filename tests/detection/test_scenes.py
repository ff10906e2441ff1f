import numpy as np
import pytest
import torch
from scipy.stats import kstest

from d4lens.detection import scene_of, search, simulate_false_alarms
from d4lens.errors import D4LensError
from d4lens.macrofit import fit_marginal, open_model
from d4lens.macrofit.marginal import SingleImage
from d4lens.observation import bin_pixels
from d4lens.simulator import preset, render
from d4lens.studies import physical_limit


@pytest.fixture(scope="module")
def marginal():
    """Two lenses of axis ratio 0.8, with a mass of 2e10 Msun on the ring and without, and their marginal fits."""
    made_by = preset("deeplense", {"lens_q": 0.8, "lens_phi": 0.5})
    truth = physical_limit.one_subhalo(made_by, 23, [2e10, 1e3], [1.0, 1.0], [0.6, 1.0])
    counts = bin_pixels(render(truth, made_by), 2).float()
    lens = open_model(made_by.observation, 2)
    return truth, counts, fit_marginal(counts, lens), lens


def scene(marginal, i, **how):
    _, counts, result, lens = marginal
    return scene_of(counts[i : i + 1], result.rows(slice(i, i + 1)), lens, **how)


@pytest.mark.parametrize("profile", ["point", "sis"])
def test_the_map_of_a_marginal_fit_is_the_likelihood_ratio_written_out(marginal, profile):
    _, counts, result, lens = marginal
    found = scene(marginal, 0, profile=profile)
    z = torch.cat([result.parameters[0], result.corrections[0]])
    about = SingleImage(counts[0], lens, light=False).expansion(lens, z)
    root = about.weights.sqrt()
    columns = (about.columns * root).flatten(1)
    normal = columns @ columns.T + torch.diag(about.precision)
    residual = ((counts[0] - about.expected) * root).flatten()
    score = columns @ residual - about.precision * about.away
    across, up = (about.columns[lens.free.index(f"source_{axis}")] * root for axis in "xy")
    x, y = (axis.double() for axis in lens.pixel_centres())
    for row, column in ((52, 51), (37, 50), (20, 30)):
        dx, dy = x - x[row, column], y - y[row, column]
        squared = dx**2 + dy**2 + 0.1**2
        template = ((across * dx + up * dy) / (squared if profile == "point" else squared.sqrt())).flatten()
        shared = columns @ template
        left = template @ residual - shared @ torch.linalg.solve(normal, score)
        kept = template @ template - shared @ torch.linalg.solve(normal, shared)
        expected = float(left / (kept + found.image.width**-2).sqrt())
        assert float(found.significance[row, column]) == pytest.approx(expected, abs=2e-3)
        assert float(found.image.information[row, column]) == pytest.approx(float(kept), rel=1e-3)


def test_a_marginal_fit_finds_the_mass_and_none_in_a_smooth_lens_of_another_shape(marginal):
    truth, counts, _, _ = marginal
    found = search(counts[:1], scene(marginal, 0))
    mass, main = truth.subhalos.iloc[0], truth.images["theta_E"].iloc[0]
    first = found.candidates[0]
    assert np.hypot(first.x - mass.x, first.y - mass.y) < 0.1
    assert first.mass == pytest.approx((mass.theta_E / main) ** 2, rel=0.25)
    assert first.p_false < 1e-6
    assert first.delta_chi2 > 64
    assert abs(first.theta_E - mass.theta_E) < 4 * first.sigma_theta_E
    smooth = search(counts[1:], scene(marginal, 1))
    assert not smooth.candidates
    assert smooth.p_false > 0.01


def test_a_mass_more_is_profiled_out_of_the_map(marginal):
    before = scene(marginal, 0)
    at = int(before.significance.argmax())
    place = tuple(float(axis.flatten()[at]) for axis in before.lens.pixel_centres())
    after, gained = before.with_mass(float(before.strength.flatten()[at]), place, 0.0)
    assert gained > 50
    values, spreads = after.mass(0)
    assert float(values[3]) == pytest.approx(after.theta_E, rel=1e-3)
    row, column = divmod(at, 75)
    assert abs(float(after.significance[row, column])) < 0.3 * float(before.significance[row, column])
    assert after.chi2 < before.chi2
    assert float(torch.linalg.eigvalsh(spreads).min()) > 0


def test_probabilities_of_noise_and_of_sources_of_the_prior_are_uniform(marginal):
    image = scene(marginal, 1).image
    p = simulate_false_alarms(image, marginal[1][1]).probability(image.trials(200, torch.Generator().manual_seed(3)))
    assert kstest(p, "uniform").pvalue > 1e-3


def test_no_profile_is_refused(marginal):
    with pytest.raises(D4LensError, match="point or sis"):
        scene(marginal, 0, profile="nfw")
