import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from d4lens import lensing, load_model, models, simulate
from d4lens.classes import CLASSES
from d4lens.cli import main
from d4lens.data import images
from d4lens.data.images import Instrument
from d4lens.errors import D4LensError
from d4lens.inference.explain import IN_QUESTION, _determinant
from d4lens.inference.pipeline import fit_images, load_classifier, prepare_source, way_of
from d4lens.models import weights
from d4lens.observation import Observation
from d4lens.simulator import PRESETS, draw, render


@pytest.fixture(scope="module")
def vortex(tmp_path_factory):
    """A simulated vortex on disk."""
    path = tmp_path_factory.mktemp("lens") / "vortex.npy"
    preset = PRESETS["deeplense"]
    np.save(path, np.asarray(render(draw(preset, 7, [2]), preset))[0])
    return path


@pytest.fixture(scope="module")
def explanation(vortex):
    return load_model().explain(vortex)


def test_it_holds_what_was_computed_on_the_way(explanation):
    n = explanation.observation.n_pixels
    for name in ("counts", "smooth", "residual", "significance", "kappa"):
        assert getattr(explanation, name).shape == (n, n)
    residual = (explanation.counts - explanation.smooth) / explanation.smooth.sqrt()
    assert np.allclose(explanation.residual, residual, atol=1e-4)
    assert float(explanation.residual.square().mean()) == pytest.approx(explanation.chi2, rel=1e-5)
    assert sum(explanation.probabilities) == pytest.approx(1, abs=1e-6)
    assert explanation.source is not None


def test_the_critical_curve_is_that_of_the_fitted_lens(vortex):
    """det A against differentiating the deflection itself, with every parameter of the lens free."""
    grid, (source,) = load_classifier().grid, images.find([vortex])
    free = ("lens_e1", "lens_e2", "lens_x", "lens_y")
    way = way_of("specialist", Instrument(), free, load_classifier())
    (fitted,) = fit_images(["one"], [prepare_source(source, grid, Instrument())], grid, way)
    p = dict(zip(fitted.lens.free, fitted.result.parameters[0].tolist(), strict=True))
    q, phi = lensing.axis_ratio_and_angle(*(torch.tensor(p[name]).double() for name in free[:2]))

    def deflection(x, y):
        lens = lensing.sie(x, y, p["theta_E"], q, phi, p["lens_x"], p["lens_y"])
        shear = lensing.shear(x, y, p["gamma1"], p["gamma2"])
        return lens[0] + shear[0], lens[1] + shear[1]

    x, y = lensing.grid(75, 0.1, torch.float64)
    away = torch.hypot(x - p["lens_x"], y - p["lens_y"]) > 0.1  # from the pole
    expected = lensing.determinant(lensing.jacobian(deflection, x, y))
    assert abs(q - 1) > 0.01
    assert torch.allclose(_determinant(fitted)[away], expected[away], atol=1e-4)
    failed = replace(fitted.result, parameters=torch.full_like(fitted.result.parameters, torch.nan))
    assert torch.isnan(_determinant(replace(fitted, result=failed))).all()


@pytest.mark.parametrize(("index", "asked"), [(0, False), (8, True)])
def test_its_attribution_is_of_the_verdict_over_a_class_that_was_in_question(index, asked, tmp_path):
    preset = PRESETS["deeplense"]
    np.save(tmp_path / "one.npy", np.asarray(render(draw(preset, 3, [index]), preset))[0])
    shown = load_model().explain(tmp_path / "one.npy")
    second = sorted(shown.probabilities)[-2]
    assert (second >= IN_QUESTION) == asked == bool(shown.rival) == (shown.attribution is not None)
    if asked:
        assert shown.rival == CLASSES[shown.probabilities.index(second)] != shown.likeliest
        assert (shown.attribution >= 0).all()
        assert shown.attribution.max() > 5 * shown.attribution.median()  # a place, no haze


def test_masses_are_looked_for_where_that_is_asked(vortex, explanation):
    assert explanation.candidates is None is explanation.detectable
    found = load_model().explain(vortex, masses=True)
    assert len(found.candidates) > 0
    assert found.detectable.shape == found.counts.shape
    assert 1e-5 < found.detectable[torch.isfinite(found.detectable)].min() < found.candidates[0].mass


def _one_lit_pixel():
    image = np.random.default_rng(2).poisson(10.0, (150, 150))
    image[75, 75] = 1_000_000
    return image


@pytest.mark.parametrize(
    ("image", "flag"),
    [
        (np.random.default_rng(0).poisson(10.0, (150, 150)), "undecided"),  # some lens fits noise
        (np.random.default_rng(1).normal(size=(150, 150)), "not converged|at its bound"),  # by the processor
        (_one_lit_pixel(), "not converged"),  # its maps are not finite
    ],
    ids=["photons", "noise", "one lit pixel"],
)
def test_what_no_lens_fits_is_drawn_with_its_label_withheld(image, flag):
    shown = load_model().explain(image)
    assert shown.abstains
    assert re.search(flag, shown.flag)
    assert np.isfinite(shown.probabilities).all()
    assert torch.isfinite(shown.kappa).all()
    assert shown.plot().axes


@pytest.mark.parametrize(("index", "converged"), [(2, True), (0, False)])
def test_a_lens_that_shines_is_explained_whether_or_not_its_marginal_fit_ends_well(index, converged):
    survey = simulate("survey", 3, 4)
    shown = load_model().explain(survey.images[index], model="marginal", pixel_scale=0.05)
    assert (shown.chi2 < 1.1) == converged == bool((shown.determinant < 0).any())
    assert torch.isfinite(shown.determinant).all() == converged
    assert ("not converged" in shown.flag) != converged
    assert shown.abstains
    assert shown.plot().axes


def test_an_image_with_pixels_that_are_not_numbers_is_explained_without_them(vortex, explanation):
    image = np.load(vortex)
    image[:4, :4] = np.nan
    shown = load_model().explain(image)
    assert np.allclose(shown.probabilities, explanation.probabilities, atol=0.05)
    assert torch.isnan(shown.counts).sum() == 4
    assert shown.plot().axes
    with pytest.raises(D4LensError, match="it is constant: every pixel is 7; it holds no image"):
        load_model().explain(np.full((150, 150), 7.0))


def test_several_images_and_networks_without_a_convergence_are_refused(vortex, tmp_path):
    for name in ("1.npy", "2.npy"):
        (tmp_path / name).write_bytes(vortex.read_bytes())
    with pytest.raises(D4LensError, match="2 images were given"):
        load_model().explain(tmp_path)
    observation = Observation(75, 0.1, 0.08625, 40.0)
    model = models.build("d4cnn", observation)
    path = tmp_path / "model.safetensors"
    weights.write(path, models.state(model), models.describe("d4cnn", observation, {}, model))
    with pytest.raises(D4LensError, match="draws no convergence"):
        load_model(path).explain(vortex)


def test_the_command_draws_and_tells(vortex, tmp_path, capsys):
    out = tmp_path / "figure.png"
    assert main(["explain", str(vortex), "--layout", "talk", "-o", str(out)]) == 0
    assert out.is_file()
    np.save(tmp_path / "bad.npy", np.full((150, 150), np.nan))
    assert main(["explain", str(tmp_path / "bad.npy"), "-o", str(tmp_path / "bad.png")]) == 1
    assert "holds data" in capsys.readouterr().err
    assert not (tmp_path / "bad.png").exists()


def test_the_command_draws_several_into_a_folder_and_goes_on_past_a_bad_one(vortex, tmp_path, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("1.npy", "3.npy"):
        (images / name).write_bytes(vortex.read_bytes())
    np.save(images / "2.npy", np.full((150, 150), np.nan))
    assert main(["explain", str(images), "-o", str(out)]) == 1
    assert sorted(path.name for path in out.iterdir()) == ["1.png", "3.png"]
    error = capsys.readouterr().err
    assert "2.npy" in error
    assert "1 of 3 images failed" in error
