import math

import numpy as np
import pytest
import torch

from d4lens.errors import PhysicsError
from d4lens.macrofit import FIT_COLUMNS, fit_smooth_lens, marginal, significance_maps
from d4lens.macrofit.marginal import MarginalFit, SingleImage, arcs, fit_marginal, open_model
from d4lens.macrofit.smooth_lens import ONE_GAUSSIAN, SmoothLensModel
from d4lens.macrofit.source_modes import SourceModes
from d4lens.observation import Observation, bin_pixels
from d4lens.simulator import Truth, draw, preset, render
from d4lens.simulator.draws import noise_stream
from d4lens.simulator.noise import poisson_quantile
from d4lens.studies.physical_limit import mean_counts

OBSERVATION = Observation(41, 0.12, 0.12, 30.0)
TRUTH = {"theta_E": 1.2, "gamma1": 0.05, "gamma2": -0.03, "source_x": 0.12, "source_y": -0.1, "e1": 0.1, "e2": 0.05}
CONSTANTS = {"n": 1.5, "R_e": 0.4, "amplitude": 400.0}


WINGS = ((0.75, 1.0), (0.25, 3.0))


@pytest.fixture(scope="module")
def model():
    return SmoothLensModel(OBSERVATION, CONSTANTS)


@pytest.fixture(scope="module")
def counts(model):
    mean = model.image(torch.tensor([[TRUTH[name] for name in FIT_COLUMNS]], dtype=torch.float64))
    return torch.poisson(mean.repeat(3, 1, 1), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def few():
    return SourceModes(n_modes=60, half_width=0.8, step=0.1, length=0.18)


def clumpy(n, clumps, seed=5):
    """Counts (n, 75, 75) of the preset's lenses before sources with `clumps` bright knots each, and who has substructure."""
    kind = preset("deeplense")
    truth = draw(kind, seed, range(n))
    random = np.random.default_rng(seed)
    mean = mean_counts(truth, kind, 1)
    for _ in range(clumps):
        angle, away = 2 * math.pi * random.random(n), 0.5 * np.sqrt(random.random(n))
        knot = {"sersic_R_e": 0.1, "sersic_amplitude": random.uniform(100, 250, n), "sersic_n": 1.0, "source_q": 1.0}
        place = {
            "source_x": truth.images["source_x"] + away * np.cos(angle),
            "source_y": truth.images["source_y"] + away * np.sin(angle),
        }
        mean = mean + mean_counts(Truth(truth.images.assign(**knot, **place), truth.subhalos), kind, 1) - 10.0
    keys = zip(*(truth.images[name].tolist() for name in ("preset", "seed", "split", "index")))
    noise = np.stack([noise_stream(*key).random((150, 150)) for key in keys])
    counts = torch.from_numpy(poisson_quantile(mean.numpy(), noise)).float()
    return counts.reshape(n, 75, 2, 75, 2).sum((2, 4)), (truth.images["class"] != "no").to_numpy(), truth.images


def auc(score, positive):
    above, below = score[positive], score[~positive]
    return float((above[:, None] > below).mean())


def test_without_room_for_corrections_it_is_the_smooth_fit(model, counts):
    smooth = fit_smooth_lens(counts, model, fine_iterations=30)
    none = fit_marginal(counts, model, modes=SourceModes(60, 0.8, 0.1, 0.18, amplitude=1e-6), iterations=10)
    assert ((none.parameters - smooth.parameters).abs() < 0.1 * smooth.sigma).all()
    assert torch.allclose(none.sigma, smooth.sigma, rtol=0.02)
    assert (none.residual - smooth.residual).abs().max() < 0.05
    assert none.degrees == pytest.approx(torch.full((3,), 7.0).double(), abs=1e-3)
    assert torch.allclose(none.chi2, smooth.chi2 * 1681 / 1674, rtol=1e-3)
    plain = significance_maps(counts, none.parameters, model)
    apart = none.significance - plain
    # Its own fit's noise at the places it computes; between them the interpolation's.
    assert apart[:, ::2, ::2].abs().max() < 0.01
    assert apart.std() < 0.05 * plain.std()
    assert none.converged.all()


@pytest.mark.parametrize("psf_shape", [ONE_GAUSSIAN, WINGS])
def test_the_evidence_is_that_of_a_dense_gaussian(counts, monkeypatch, psf_shape):
    monkeypatch.setattr(marginal, "_LIT", 0.0)  # every pixel that the source reaches
    few = SourceModes(n_modes=60, half_width=0.8, step=0.1, length=0.18, dtype=torch.float64)
    free = ("theta_E", "source_x", "source_y")
    model = SmoothLensModel(OBSERVATION, {**CONSTANTS, **TRUTH}, free, psf_shape=psf_shape, dtype=torch.float64)
    noise = torch.full((1, 41, 41), 200.0)
    result = fit_marginal(counts[:1], model, noise=noise, modes=few, iterations=12)
    found = result.parameters

    def stack(coefficients):
        def bend(u, v, light):
            (f_u, d_u), (f_v, d_v) = (few.along(axis.flatten(), slopes=True) for axis in (u, v))
            table = few.table(coefficients)
            changes = (1 + ((f_u @ table) * f_v).sum(1), ((d_u @ table) * f_v).sum(1), ((f_u @ table) * d_v).sum(1))
            return tuple(change.view(u.shape) for change in changes)

        return model.image_and_jacobian(found, bend)[0].flatten(1)

    def image(coefficients):
        return stack(coefficients)[0]

    plain = image(torch.zeros(60).double())
    columns = torch.stack([image(unit) - plain for unit in torch.eye(60).double()], 1)
    covariance = 40000.0 * torch.eye(1681).double() + columns @ columns.T
    misfit = counts[0].flatten().double() - plain
    log_likelihood = -0.5 * misfit @ torch.linalg.solve(covariance, misfit) - 0.5 * torch.logdet(covariance / 40000)
    assert float(result.log_evidence[0]) == pytest.approx(float(log_likelihood), abs=0.1)

    slopes = torch.cat([stack(result.corrections[0])[1:].T, columns], 1) / 200.0
    fisher = slopes.T @ slopes
    prior = torch.diag(torch.cat([torch.zeros(3), torch.ones(60)]).double())
    degrees = torch.linalg.solve(fisher + prior, fisher).trace()
    assert float(result.degrees[0]) == pytest.approx(float(degrees), abs=0.02)
    assert 10 < degrees < 55


def test_wings_of_a_psf_pass_for_structure_unless_they_are_known():
    native = preset("deeplense").observation
    lens = SmoothLensModel(native, CONSTANTS, binning=2, psf_shape=WINGS)
    mean = lens.image(torch.tensor([[TRUTH[name] for name in FIT_COLUMNS]], dtype=torch.float64))
    counts = torch.poisson(mean, generator=torch.Generator().manual_seed(2))
    known, ignored = (fit_marginal(counts, open_model(native, 2, psf_shape=shape)) for shape in (WINGS, ONE_GAUSSIAN))
    assert known.converged.all()
    assert known.chi2[0] < 1.05
    assert known.significance.abs().max() < 4.5
    # Corrections of the source take up some of the wings, and what they leave looks like masses.
    assert ignored.significance.abs().max() > 10


def test_pixels_without_data_carry_no_weight(model, counts, few):
    mask = torch.zeros(1, 41, 41, dtype=torch.bool)
    mask[0, 10:14, 20:30] = True
    plain, other = (fit_marginal(counts[:1].masked_fill(mask, none), model, modes=few) for none in (math.nan, math.inf))
    assert torch.equal(other.parameters, plain.parameters)
    assert torch.equal(other.significance, plain.significance)
    assert torch.equal(other.chi2, plain.chi2)
    assert (plain.residual[mask] == 0).all()
    assert plain.chi2[0] < 1.2
    noise = plain.model_counts.sqrt()
    infinite = fit_marginal(counts[:1], model, noise=noise.masked_fill(mask, math.inf), modes=few)
    assert (infinite.residual[mask] == 0).all()
    assert ((infinite.parameters - plain.parameters).abs() < 0.5 * plain.sigma).all()


def test_a_noise_map_sets_the_scale_whatever_the_unit(model, counts, few):
    noise = counts[:1].clamp_min(1).sqrt()
    whole = fit_marginal(counts[:1], model, noise=noise, modes=few)
    per_second = SmoothLensModel(
        Observation(41, 0.12, 0.12, 30.0 / 500), {**CONSTANTS, "amplitude": 400.0 / 500}, model.free
    )
    scaled = fit_marginal(counts[:1] / 500, per_second, noise=noise / 500, modes=few)
    assert ((scaled.parameters - whole.parameters).abs() < 0.1 * whole.sigma).all()
    assert scaled.chi2[0] == pytest.approx(float(whole.chi2[0]), rel=0.01)


def test_an_images_bytes_do_not_depend_on_the_others(model, counts, few):
    whole = fit_marginal(counts, model, modes=few, threads=2)
    alone = fit_marginal(counts[1:2], model, modes=few, threads=1)
    for name in ("parameters", "covariance", "chi2", "residual", "significance", "degrees"):
        assert torch.equal(getattr(whole, name)[1:2], getattr(alone, name)), name


def test_the_expansion_is_the_image_and_its_derivatives(model, counts, few):
    double = SmoothLensModel(OBSERVATION, CONSTANTS, dtype=torch.float64)
    modes = SourceModes(n_modes=60, half_width=0.8, step=0.1, length=0.18, dtype=torch.float64)
    found = fit_marginal(counts[:1].double(), double, modes=modes)
    parameters, corrections = found.parameters, found.corrections
    one = SingleImage(counts[0].double(), double, light=False, modes=modes)
    about = one.expansion(double, torch.cat([parameters[0], corrections[0]]))
    again, _ = one.fit(double, torch.cat([parameters[0], corrections[0]]))
    assert ((again.parameters - parameters[0]).abs() < 0.1 * found.sigma[0]).all()
    assert (about.expected - found.model_counts[0]).abs().max() < 1e-3
    assert torch.equal(about.away[7:], corrections[0])
    assert (about.weights * about.expected - 1).abs().max() < 1e-6
    steps = [("parameters", 0), ("parameters", 3), ("corrections", 0), ("corrections", 7)]
    for of, k in steps:
        ends = []
        for sign in (1, -1):
            at = {"parameters": parameters.clone(), "corrections": corrections.clone()}
            at[of][0, k] += sign * 1e-4
            ends.append(arcs(double, at["parameters"], at["corrections"], modes)[0])
        expected = (ends[0] - ends[1]) / 2e-4
        column = about.columns[k if of == "parameters" else 7 + k]
        # Corrections stop where the source is a tenth of the noise; their modes are read off a table.
        assert (column - expected).abs().max() < 0.02 * expected.abs().max()


def test_hopeless_images_are_flagged_and_keep_their_row(model, counts, few):
    dark, missing = torch.zeros(41, 41), torch.full((41, 41), math.nan)
    random = 2000 * torch.rand(41, 41, generator=torch.Generator().manual_seed(0))
    result = fit_marginal(torch.stack([dark, missing, random, 1e30 * random, counts[0]]), model, modes=few)
    assert torch.equal(result.parameters[-1], fit_marginal(counts[:1], model, modes=few).parameters[0])
    assert result.converged[-1]
    assert not result.converged[1]
    assert math.isinf(result.chi2[1])
    assert not torch.isnan(result.chi2).any()
    assert torch.isfinite(result.parameters).all()
    assert torch.isfinite(result.significance).all()
    assert ((result.chi2[:4] > 2) | ~result.converged[:4]).all()


def test_shapes_and_noise_that_do_not_fit_are_refused(model, counts):
    with pytest.raises(PhysicsError, match=r"noise must have the counts' shape"):
        fit_marginal(counts, model, noise=torch.ones(3, 20, 20))
    with pytest.raises(PhysicsError, match="noise must be above 0"):
        fit_marginal(counts, model, noise=torch.zeros_like(counts))
    with pytest.raises(PhysicsError, match=r"counts must be \(B, 41, 41\)"):
        fit_marginal(counts[:, :20], model)
    with pytest.raises(PhysicsError, match="einstein_radius must be 3 numbers above 0"):
        fit_marginal(counts, model, einstein_radius=torch.tensor([1.0]))


def test_a_clumpy_source_is_no_substructure():
    counts, structured, _ = clumpy(12, clumps=2)
    model = open_model(preset("deeplense").observation, 2)
    smooth = fit_smooth_lens(counts, model, fine_iterations=6)
    before = significance_maps(counts, smooth.parameters, model).flatten(1).amax(1).numpy()
    result = fit_marginal(counts, model)
    after = result.significance.flatten(1).amax(1).numpy()
    assert auc(after, structured) >= 0.96 > auc(before, structured)
    assert np.median(after[~structured]) < 0.3 * np.median(before[~structured])
    assert (result.chi2[torch.from_numpy(~structured)] < 1.15).all()


def test_smooth_lenses_leave_white_maps_and_honest_errors():
    counts, structured, truth = clumpy(30, clumps=0, seed=8)
    smooth = torch.from_numpy(np.flatnonzero(~structured))
    result = fit_marginal(counts[smooth], open_model(preset("deeplense").observation, 2))
    assert result.converged.all()
    assert abs(result.chi2.mean() - 1) < 0.02
    assert 0.8 < result.significance.std() < 1.2
    pulls = (
        result.columns - torch.tensor(truth.iloc[smooth.numpy()][list(FIT_COLUMNS)].to_numpy(float))
    ) / result.sigma[:, :7]
    assert 0.7 < pulls.std() < 1.3


def test_survey_lenses_are_found_from_anywhere():
    """Elliptical, cuspy and off-centre ones among them; a single start from the moments ends at false lenses in a fifth."""
    kind = preset("survey_deep", {"snr": [200, 400], "psf_error": 0.0})
    truth = draw(kind, 11, range(0, 24, 3))  # the smooth ones
    found, images = [], render(truth, kind).float()
    for row, image in zip(truth.images.to_dict("records"), images, strict=True):
        lens = open_model(Observation(150, 0.05, row["image_psf_sigma"], row["image_sky"]), 2)
        found.append(fit_marginal(bin_pixels(image[None], 2), lens))
    result = MarginalFit.joined(found)
    radius = torch.tensor(truth.images["theta_E"].tolist(), dtype=torch.float64)
    assert result.converged.all()
    assert ((result.columns[:, 0] / radius - 1).abs() < 0.02).all()
    assert (result.arcs_chi2 < 1.5).all()  # beyond it an answer is flagged
