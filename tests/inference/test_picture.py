from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from d4lens.detection import Candidate
from d4lens.errors import D4LensError
from d4lens.inference.explain import Explanation
from d4lens.inference.picture import draw_explanation, figure, places_for
from d4lens.observation import Observation


@pytest.fixture(scope="module")
def noise():
    """An explanation of nothing but noise, about a critical curve of radius 1.2 arcsec."""
    grid = Observation(75, 0.1, 0.08625, 40.0)
    axis = (torch.arange(75) - 37) * 0.1
    radius = torch.hypot(axis, axis[:, None])
    map_ = torch.from_numpy(np.random.default_rng(1).normal(size=(75, 75)).astype(np.float32))
    return Explanation(
        name="noise.npy",
        observation=grid,
        counts=40 + 6 * map_,
        smooth=torch.full((75, 75), 40.0),
        residual=map_,
        significance=map_,
        determinant=1 - 1.2 / radius.clamp_min(1e-6),
        kappa=0.01 * map_,
        lens_place=(0.0, 0.0),
        source=map_[:30, :30],
        source_half_width=1.5,
        probabilities=(0.9, 0.07, 0.03),
        chi2=1.0,
        flag="",
    )


def panels(drawn):
    """The maps by their titles."""
    return {axes.get_title(): axes for axes in drawn.axes if axes.get_title()}


def test_scales_are_fixed_so_that_noise_looks_like_noise(noise):
    loud = replace(noise, residual=50 * noise.residual, significance=50 * noise.significance, kappa=9 * noise.kappa)
    for shown in (noise, loud):
        found = {title: axes.images[0].get_clim() for title, axes in panels(shown.plot()).items()}
        assert found["residual of the smooth lens [σ]"] == (-5, 5)
        assert found["significance of one more mass [σ]"] == (-10, 10)
        assert found["convergence κ, network"] == (0, 0.1)


def test_five_sigma_and_the_critical_curve_are_contours(noise):
    quiet = panels(figure(noise))
    assert not quiet["significance of one more mass [σ]"].collections
    peak = noise.significance.clone()
    peak[30:40, 30:40] = 7.0
    drawn = panels(figure(replace(noise, significance=peak)))
    assert drawn["significance of one more mass [σ]"].collections[0].levels == [5]
    (curve,) = quiet["convergence κ, network"].collections
    radii = np.hypot(*np.concatenate([path.vertices for path in curve.get_paths()]).T)
    assert np.allclose(radii, 1.2, atol=0.02)


def test_every_panel_has_its_axes_in_arcsec(noise):
    for layout in ("full", "talk"):
        for axes in panels(figure(noise, layout)).values():
            assert (axes.get_xlabel(), axes.get_ylabel()) == ("x [arcsec]", "y [arcsec]")


def test_the_convergence_lies_where_the_lens_does(noise):
    extent = panels(figure(replace(noise, lens_place=(0.3, -0.2))))["convergence κ, network"].images[0].get_extent()
    assert np.allclose(extent, (-3.45, 4.05, -3.95, 3.55))


def test_panels_are_those_there_is_something_for(noise):
    assert len(panels(figure(noise))) == 6
    whole = replace(noise, truth=("vort", noise.kappa), rival="sphere", attribution=noise.kappa)
    titles = set(panels(figure(whole)))
    assert {"true κ: vort", "attribution: no over sphere"} <= titles
    assert len(titles) == 8
    assert len(panels(figure(replace(noise, source=None)))) == 5
    mass = Candidate(0.5, -0.5, 0.1, 0.008, 0.01, 0.01, 0.01, 0.001, 60.0, 7.0, 1e-9)
    found = panels(figure(replace(noise, candidates=(mass,), detectable=torch.full((75, 75), 0.01))))
    assert [text.get_text() for text in found["1 mass found, √counts"].texts] == ["0.80%"]
    assert found["log₁₀ of mass seen at 5σ over lens"].images[0].get_array().mean() == pytest.approx(-2)
    assert len(panels(figure(replace(noise, candidates=(mass,)), "talk"))) == 4


def test_a_slide_has_four_panels_the_truth_where_it_is_known(noise):
    assert list(panels(figure(noise, "talk")))[-1] == "convergence κ, network"
    known = panels(figure(replace(noise, truth=("no", noise.kappa)), "talk"))
    assert len(known) == 4
    assert list(known)[-1] == "true κ: no"
    with pytest.raises(D4LensError, match="layout takes full or talk, not 'poster'"):
        figure(noise, "poster")


def test_the_title_is_verdict_probability_and_flag(noise):
    def title(shown):
        return figure(shown).get_suptitle().replace("\n", " ")

    assert title(noise) == "no (smooth), p = 0.900, no flag"
    assert title(replace(noise, flag="unlike training")) == "no (smooth), p = 0.900, unlike training"
    withheld = replace(noise, flag="not converged", abstains=True)
    assert title(withheld) == "label withheld; likeliest no (smooth), p = 0.900, not converged"


def test_a_long_title_stays_within_the_picture(noise):
    shown = figure(replace(noise, flag="at its bound: " + ", ".join(f"parameter_{i}" for i in range(9))), "talk")
    shown.canvas.draw()
    box, whole = shown._suptitle.get_window_extent(), shown.bbox
    assert box.x0 >= 0
    assert box.x1 <= whole.x1
    assert box.y1 <= whole.y1
    assert box.y0 > max(axes.get_window_extent().y1 for axes in shown.axes)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_it_is_drawn(noise, tmp_path, suffix):
    path = tmp_path / f"figure{suffix}"
    draw_explanation(noise, path)
    assert path.stat().st_size > 10_000
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_picture_format_is_refused_and_leaves_nothing(noise, tmp_path):
    with pytest.raises(D4LensError, match="names no picture format"):
        draw_explanation(noise, tmp_path / "figure.xyz")
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_called_by_what_their_images_do_not_share(tmp_path):
    zipped = ["six.zip: dataset/train/no/1.npy", "six.zip: dataset/train/vort/1.npy"]
    assert places_for(zipped, Path("out")) == [Path("out/no-1.png"), Path("out/vort-1.png")]
    assert places_for(["a/x.npy", "a/x.fits"], None) == [Path("explained/x.npy.png"), Path("explained/x.fits.png")]
    assert places_for(["a/x.npy"], None) == [Path("explained.png")]
    assert places_for(["a/x.npy"], Path("lens.svg")) == [Path("lens.svg")]
    assert places_for(["a/x.npy"], tmp_path) == [tmp_path / "x.png"]
    with pytest.raises(D4LensError, match="one picture and there are 2 images; name a folder: -o lens"):
        places_for(zipped, Path("lens.png"))
    with pytest.raises(D4LensError, match="names no picture format"):
        places_for(zipped, Path("lens.xyz"))
