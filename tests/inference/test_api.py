import subprocess
import sys

import numpy as np
import pytest
import torch
from astropy import units
from matplotlib.figure import Figure

import d4lens.inference.api
from d4lens import fit, load_model, simulate
from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.inference.pipeline import FIT_TABLE_COLUMNS, PREDICT_COLUMNS
from d4lens.macrofit import FIT_COLUMNS


@pytest.fixture(scope="module")
def lenses():
    return simulate("deeplense", n=3, seed=1)


@pytest.fixture(scope="module")
def model():
    return load_model()


def test_simulated_lenses_know_what_they_are(lenses):
    assert lenses.images.shape == (3, 150, 150)
    assert lenses.labels == ["no", "sphere", "vort"]
    assert list(lenses.to_pandas()["class"]) == lenses.labels
    assert np.array_equal(simulate(n=1, seed=1).images[0], lenses.images[0])
    assert isinstance(lenses.plot(), Figure)
    with pytest.raises(D4LensError, match="n must be a whole number of at least 1, not 0"):
        simulate(n=0)


def test_arrays_tensors_lists_and_paths_get_the_same_answer(model, lenses, tmp_path):
    np.save(tmp_path / "0.npy", lenses.images[0])
    answers = [
        model.predict(images, tta=False).to_pandas()
        for images in (
            lenses.images[0],
            torch.from_numpy(lenses.images[:1]),
            [lenses.images[0]],
            str(tmp_path),
            [tmp_path / "0.npy"],
        )
    ]
    for answer in answers:
        assert answer.drop(columns="path").equals(answers[0].drop(columns="path"))
    assert answers[0]["label"][0] == "no"


def test_results_are_tables_and_drawings(model, lenses):
    broken = [lenses.images[1], np.full((150, 150), np.nan)]
    answer = model.predict(broken, tta=False)
    assert list(answer.to_pandas().columns) == list(PREDICT_COLUMNS)
    assert answer.labels == ["sphere", ""]
    assert answer.flags[1].startswith("failed: ")
    assert np.isnan(answer.probabilities[1]).all()
    assert len(answer.plot().axes[0].patches) == 6
    fits = fit(broken, free=("n",), model="specialist")
    more = [column for name in ("n", "amplitude", "sky") for column in (name, f"sigma_{name}")]
    assert list(fits.to_pandas().columns) == [*FIT_TABLE_COLUMNS, *(f"sigma_{name}" for name in FIT_COLUMNS), *more]
    assert list(fits.freed.columns) == more
    assert fits.parameters.shape == fits.sigma.shape == (2, 7)
    assert fits.parameters[0, 0] == pytest.approx(lenses.truth.images["theta_E"][1], abs=0.05)
    assert list(fits.converged) == [True, False]
    assert isinstance(fits.plot(), Figure)
    explained = model.explain(lenses.images[1])
    assert explained.processing
    assert isinstance(explained.plot(), Figure)


def test_mistakes_are_said(model, lenses):
    for images, sentence in (
        (np.zeros((2, 2, 8, 8)), "images of shape"),
        ([], "no images to work on"),
        ([np.zeros((2, 8, 8))], "image 0 has shape"),
        ("nowhere.npy", "no file or folder"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            model.predict(images)
    with pytest.raises(D4LensError, match="2 images were given to be explained"):
        model.explain(lenses.images[:2])
    image = lenses.images[0]
    for given, sentence in (
        ({"sky": "ten"}, "sky takes a number, not 'ten'"),
        ({"pixelscale": 0.05}, "nothing is called pixelscale"),
        ({"free": ("n", 3)}, "free takes names"),
        ({"free": "n,R"}, "'R' is no parameter"),
        ({"force_label": "no"}, "force_label takes True or False, not 'no'"),
        ({"progress": None}, "progress takes True or False"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            model.predict(image, **given)
    for path in (3, b"model.safetensors", ["a"]):
        with pytest.raises(D4LensError, match="path takes the path of a file"):
            load_model(path)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"n": "3"}, "n must be a whole number"),
        ({"n": 2.5}, "n must be a whole number"),
        ({"seed": None}, "seed must be a whole number"),
        ({"name": ["deeplense"]}, "a preset is called by its name"),
        ({"overrides": [("theta_E", 1.2)]}, "overrides are given by name"),
        ({"overrides": {3: 1.2}}, "overrides are given by name"),
        ({"overrides": {"theta_E": "1.2"}}, "theta_E must be one number"),
    ],
)
def test_what_simulate_cannot_take_is_said(given, sentence):
    with pytest.raises(D4LensError, match=sentence):
        simulate(**given)


def test_text_quantities_and_comma_lists_are_understood_as_numbers_are(lenses):
    known = {"pixel_scale": 0.05, "sky": 10.0, "exposure": 60.0, "gain": 2.0, "psf": 0.08625}
    meant = fit(lenses.images[0] / 120, free=("n",), **known).to_pandas()
    for other in (
        {name: str(value) for name, value in known.items()},
        {
            "pixel_scale": 50 * units.mas,
            "sky": 10 * units.electron / units.pix,
            "exposure": 1 * units.min,
            "gain": 2 * units.electron / units.adu,
            "psf": 0.08625 * units.arcsec,
        },
    ):
        assert fit(lenses.images[0] / 120, free=" n,", **other).to_pandas().equals(meant)


def test_a_label_is_withheld_without_a_smooth_lens(model):
    noise = np.random.default_rng(0).poisson(50, (150, 150))
    answer, forced = (model.predict(noise, tta=False, force_label=force) for force in (False, True))
    assert "at its bound" in answer.flags[0]
    assert answer.labels == [""]
    assert forced.labels[0] in CLASSES
    assert np.array_equal(answer.probabilities, forced.probabilities)
    assert np.isfinite(answer.probabilities).all()


def test_the_example_in_the_docstring_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = d4lens.inference.api.__doc__.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 6
    exec(code, {})
    assert "vort" in capsys.readouterr().out
    assert (tmp_path / "answer.png").stat().st_size > 1000


def test_the_package_is_imported_at_no_cost():
    code = "import d4lens, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_prediction_needs_none_of_the_extras(tmp_path):
    """In a process where the packages of the extras cannot be imported."""
    code = """
import sys
sys.modules |= dict.fromkeys(("dvc", "mlflow", "lightning", "sklearn", "gdown", "psutil", "jinja2", "pdoc"))
import d4lens
lens = d4lens.simulate(n=1, seed=1)
assert d4lens.predict(lens.images, tta=False).labels == ["no"]
assert d4lens.fit(lens.images).converged.all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
