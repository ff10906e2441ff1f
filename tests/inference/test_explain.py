from dataclasses import replace

import numpy as np
import pytest

from d4lens import models
from d4lens.classes import CLASSES
from d4lens.cli import main
from d4lens.errors import D4LensError
from d4lens.inference.explain import draw_explanation, explain
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
    return explain(vortex)


def test_it_holds_what_was_computed_on_the_way(explanation):
    n = explanation.observation.n_pixels
    for name in ("counts", "smooth", "residual", "significance", "kappa"):
        assert getattr(explanation, name).shape == (n, n)
    residual = (explanation.counts - explanation.smooth) / explanation.smooth.sqrt()
    assert np.allclose(explanation.residual, residual, atol=1e-4)
    assert float(explanation.residual.square().mean()) == pytest.approx(explanation.chi2, rel=1e-5)
    assert sum(explanation.probabilities) == pytest.approx(1, abs=1e-6)
    assert explanation.source is not None


def test_its_attribution_is_of_the_likelier_substructure(explanation):
    likelier = max((1, 2), key=lambda i: explanation.probabilities[i])
    assert explanation.attributed_to == CLASSES[likelier]
    assert explanation.attribution.shape == explanation.counts.shape
    assert (explanation.attribution >= 0).all()
    assert explanation.attribution.max() > 10 * explanation.attribution.median()  # a place, no haze


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_it_is_drawn(explanation, tmp_path, suffix):
    path = tmp_path / f"figure{suffix}"
    draw_explanation(explanation, path)
    assert path.stat().st_size > 10_000
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_picture_format_is_refused_and_leaves_nothing(explanation, tmp_path):
    with pytest.raises(D4LensError, match="names no picture format"):
        draw_explanation(explanation, tmp_path / "figure.xyz")
    assert list(tmp_path.iterdir()) == []


def test_several_images_and_networks_without_a_convergence_are_refused(vortex, tmp_path):
    for name in ("1.npy", "2.npy"):
        (tmp_path / name).write_bytes(vortex.read_bytes())
    with pytest.raises(D4LensError, match="holds 2 images"):
        explain(tmp_path)
    observation = Observation(75, 0.1, 0.08625, 40.0)
    model = models.build("d4cnn", observation)
    path = tmp_path / "model.safetensors"
    weights.write(path, models.state(model), models.describe("d4cnn", observation, {}, model))
    with pytest.raises(D4LensError, match="draws no convergence"):
        explain(vortex, path)


def test_the_command_draws_and_tells(vortex, tmp_path, capsys):
    out = tmp_path / "figure.png"
    assert main(["explain", str(vortex), "-o", str(out)]) == 0
    assert out.is_file()
    np.save(tmp_path / "bad.npy", np.full((150, 150), np.nan))
    assert main(["explain", str(tmp_path / "bad.npy"), "-o", str(tmp_path / "bad.png")]) == 1
    assert "holds data" in capsys.readouterr().err
    assert not (tmp_path / "bad.png").exists()


def test_its_title_says_where_a_label_is_withheld(explanation, tmp_path):
    def title(shown):
        return shown.plot().get_suptitle()

    assert "beware" not in title(explanation)
    assert title(replace(explanation, flag="unlike training")).endswith(", beware: unlike training")
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).poisson(50, (150, 150)))
    empty = explain(tmp_path / "noise.npy")
    assert empty.abstains
    assert ", no label: " in title(empty)
    assert "at its bound" in title(empty)
