"""Weights that describe something else, and another number of threads."""

import numpy as np
import pandas as pd
import pytest
import torch
from answers import fit_paths, predict_paths

from d4lens import models
from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.inference.pipeline import load_classifier
from d4lens.macrofit import TABLE_COLUMNS
from d4lens.models import weights
from d4lens.observation import Observation
from d4lens.simulator import PRESETS, draw, render


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """An untrained network, as a file."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    observation = Observation(75, 0.1, 0.08625, 40.0)
    model = models.build("d4cnn", observation, fields=[1, 2])
    weights.write(path, models.state(model), models.describe("d4cnn", observation, {"fields": [1, 2]}, model))
    return path


def test_weights_that_are_as_they_should_be_are_taken(network):
    assert load_classifier(network).grid.n_pixels == 75


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"options": []}, "describes no network"),
        ({"observation": None}, "describes no network"),
        ({"observation": {}}, "describes no network"),
        ({"name": ["d4cnn"]}, "describes no network"),
        ({"largest_chi2": "x"}, "describes no network"),
        ({"observation": {"n_pixels": -3, "pixel_scale": 0.1, "psf_sigma": 0.1, "sky": 1.0}}, "n_pixels must be"),
    ],
)
def test_weights_that_describe_something_else_are_refused(network, tmp_path, changes, reason):
    tensors, description = weights.read(network)
    weights.write(tmp_path / "odd.safetensors", tensors, {**description, **changes})
    with pytest.raises(D4LensError, match=reason):
        load_classifier(tmp_path / "odd.safetensors")


def test_weights_that_are_not_finite_are_refused(network, tmp_path):
    tensors, description = weights.read(network)
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")
    weights.write(tmp_path / "nan.safetensors", tensors, description)
    with pytest.raises(D4LensError, match="holds weights that are not finite"):
        load_classifier(tmp_path / "nan.safetensors")


def test_the_number_of_threads_does_not_matter(tmp_path):
    """1, 2 and 4: sums in another order. 1e-5 in a probability; in the fit 1e-4, of arcsec or of chi2."""
    preset = PRESETS["deeplense"]
    np.save(tmp_path / "1.npy", np.asarray(render(draw(preset, 3, [1]), preset))[0])
    names = [f"p_{name}" for name in CLASSES]
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            found.append((predict_paths([tmp_path], tta=False).table, fit_paths([tmp_path]).table))
    finally:
        torch.set_num_threads(before)
    (alone, lens), *others = found
    numbers = [column for column in TABLE_COLUMNS if pd.api.types.is_float_dtype(lens[column])]
    assert len(numbers) >= 7
    for table, fitted in others:
        assert np.abs(table[names].to_numpy() - alone[names].to_numpy()).max() < 1e-5
        assert np.allclose(fitted[numbers], lens[numbers], rtol=1e-4, atol=1e-4)
