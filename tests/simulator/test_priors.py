import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recipes
from referees import read_truth

from d4lens import simulator
from d4lens.errors import D4LensError, PhysicsError
from d4lens.simulator import PRESETS, preset
from d4lens.simulator.priors import Distribution, power_law


@pytest.mark.parametrize("name", PRESETS)
def test_every_prior_is_physical_and_says_its_source(name):
    simulator.draw(preset(name), 0, range(3))
    for key, prior in PRESETS[name].priors.items():
        assert prior.low <= prior.high, key
        assert prior.source or prior.kind == "fixed", key


def test_a_number_fixes_a_pair_is_uniform_a_mapping_is_any_prior():
    p = preset("deeplense", {"theta_E": [0.9, 1.6], "sersic_n": 2.0, "psf_sigma": 0.09, "n_pixels": 64})
    assert (p.priors["theta_E"].kind, p.priors["theta_E"].low, p.priors["theta_E"].high) == ("uniform", 0.9, 1.6)
    assert p.observation.psf_sigma == 0.09
    assert p.observation.n_pixels == 64
    images = simulator.draw(p, 0, range(50)).images
    assert images["theta_E"].between(0.9, 1.6).all()
    assert images["theta_E"].std() > 0.1
    assert (images["sersic_n"] == 2.0).all()
    assert images["z_lens"].isna().all()  # they no longer decide the Einstein radius
    steep = preset("deeplense", {"subhalo_mass": {"kind": "power-law", "low": 1e7, "high": 1e9, "slope": -1.9}})
    assert steep.priors["subhalo_mass"] == Distribution("power-law", 1e7, 1e9, "Msun", "override", -1.9)
    assert preset("deeplense", {}) == PRESETS["deeplense"]


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"theta_e": 1.0}, D4LensError, "theta_e.*knows.*theta_E"),
        ({"theta_E": 0}, PhysicsError, "theta_E.*not 0"),
        ({"theta_E": [-1, 1]}, PhysicsError, "theta_E.*not -1"),
        ({"theta_E": [1.6, 0.9]}, PhysicsError, "theta_E.*1.6.*0.9"),
        ({"theta_E": math.nan}, PhysicsError, "theta_E.*nan"),
        ({"source_q": 1.2}, PhysicsError, "source_q.*not 1.2"),
        ({"source_q": 0.0}, PhysicsError, "source_q.*not 0"),
        ({"lens_q": -0.5}, PhysicsError, "lens_q.*not -0.5"),
        ({"psf_sigma": 0}, PhysicsError, "psf_sigma.*not 0"),
        ({"psf_sigma": [0.1, 0.2]}, D4LensError, "psf_sigma must be one number"),
        ({"n_pixels": 7}, PhysicsError, "n_pixels.*not 7"),
        ({"n_pixels": 64.5}, PhysicsError, "n_pixels.*64.5"),
        ({"sky": -1}, PhysicsError, "sky.*not -1"),
        ({"n_subhalos": -1}, PhysicsError, "n_subhalos.*not -1"),
        ({"n_subhalos": 2.5}, PhysicsError, "n_subhalos.*2.5"),
        ({"sersic_n": 0.3}, PhysicsError, "sersic_n.*not 0.3"),
        ({"gamma": -0.1}, PhysicsError, "gamma.*not -0.1"),
        ({"rod_half_length": 0}, PhysicsError, "rod_half_length.*not 0"),
        ({"z_lens": 1.0}, PhysicsError, "z_source.*0.8.*z_lens.*1"),
        ({"theta_E": "big"}, D4LensError, "theta_E.*'big'"),
        ({"theta_E": [1, 2, 3]}, D4LensError, "theta_E.*pair"),
        ({"theta_E": {"kind": "gamma", "low": 1, "high": 2}}, D4LensError, "theta_E.*log-uniform"),
        ({"subhalo_mass": {"kind": "log-uniform", "low": 0, "high": 2}}, PhysicsError, "subhalo_mass.*low > 0"),
        ({"theta_E": 1.0, "z_lens": 0.5}, D4LensError, "theta_E and z_lens"),
        ({"source_x": 0.1}, D4LensError, "source_x and source_y together"),
        ({"corrected": True}, D4LensError, "corrected.*model-i"),
    ],
)
def test_refuses_what_is_unknown_or_not_physical(overrides, error, words):
    with pytest.raises(error, match=words):
        preset("deeplense", overrides)


def test_refuses_an_unknown_preset():
    with pytest.raises(D4LensError, match=r"'model-ii'.*deeplense, deeplense_turned, model-i"):
        preset("model-ii")


def test_the_subhalo_mass_function_has_its_slope():
    """Maximum likelihood of dN/dm ∝ m^slope on [low, high], by Newton; its error from the curvature."""
    prior = PRESETS["deeplense"].priors["subhalo_mass"]
    truth = simulator.draw(preset("deeplense"), 1, range(400), "sphere")
    x = np.log(truth.subhalos["mass"].to_numpy() / prior.low)
    assert len(x) == 10_000
    width = math.log(prior.high / prior.low)
    # In ln m the density is p e^(p x)/(e^(p width) - 1) on [0, width], p = slope + 1.
    p = 0.0
    for _ in range(50):
        small = abs(p * width) < 1e-4
        mean = width / 2 + p * width**2 / 12 if small else width / (1 - math.exp(-p * width)) - 1 / p
        variance = width**2 / 12 if small else 1 / p**2 - width**2 / (2 * math.sinh(p * width / 2)) ** 2
        p += (x.mean() - mean) / variance
    error = 1 / math.sqrt(len(x) * variance)
    assert error < 0.0075
    assert abs(p - 1 - prior.slope) < 3 * error
    assert abs(p - 1 + 1.9) > 3 * error  # what the code's name for it claims


@pytest.mark.parametrize("slope", [-2.0, -1.0, -0.9, 0.0, 1.5])
def test_power_law_quantile_inverts_its_distribution_function(slope):
    prior = power_law(2.0, 9.0, slope)
    grid = np.linspace(2.0, 9.0, 20001)
    density = grid**slope
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    cumulative /= cumulative[-1]
    for u in (0.0, 0.1, 0.5, 0.9):
        assert prior.quantile(u) == pytest.approx(np.interp(u, cumulative, grid), abs=1e-5)


def test_einstein_radii_are_those_of_the_genuine_set():
    theta_E = simulator.draw(preset("deeplense"), 0, range(1500)).images["theta_E"] / 0.05
    assert theta_E.mean() == pytest.approx(25.3, abs=0.4)
    assert theta_E.std() == pytest.approx(3.7, abs=0.3)
    model_i = simulator.draw(preset("model-i"), 0, range(2)).images["theta_E"]
    assert model_i.to_numpy() == pytest.approx(1.281, abs=5e-4)


def test_a_preset_prints_as_a_table():
    lines = str(preset("deeplense", {"sersic_n": 2})).splitlines()
    assert len(lines) == len(PRESETS["deeplense"].priors)
    assert any(line.split()[:4] == ["gamma", "uniform(0,", "0.3)", "fitted"] for line in lines)
    assert any(line.split() == ["sersic_n", "2", "override"] for line in lines)
    assert any("power-law^-0.9(1e+06, 1e+10) Msun" in line for line in lines)


ROOT = Path(__file__).parents[2]


def test_the_recipe_of_a_preset_is_one_file_that_the_command_line_follows(tmp_path):
    """CONTRIBUTING.md's diff in a copy of the package: the new name is offered, refused when mistyped, and simulated."""
    recipes.copy_of_project(tmp_path, "src")
    recipes.apply_recipe("priors.py", ["src/d4lens/simulator/priors.py"], tmp_path)

    def d4lens(*arguments):
        command = [sys.executable, "-m", "d4lens", "simulate", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "200"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    names = ["elliptical", *PRESETS]
    assert f"--preset {{{','.join(names)}}}" in d4lens("--help").stdout
    refused = d4lens("--preset", "elptical", "--n", "3", "-o", "a.zip").stderr
    assert f"there are {', '.join(names)}" in refused
    made = d4lens("--preset", "elliptical", "--n", "3", "-o", "a.zip")
    assert made.returncode == 0, made.stderr
    truth = read_truth(tmp_path / "a.zip").images
    assert set(truth["preset"]) == {"elliptical"}
    assert truth["lens_q"].between(0.6, 1.0).all()
    assert truth["lens_q"].nunique() == 3
