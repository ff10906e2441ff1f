import math
from types import SimpleNamespace

import numpy as np
import pytest

from d4lens import simulator
from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.macrofit import preset_model
from d4lens.results import predictions
from d4lens.studies import physical_limit, recovery, sensitivity


@pytest.fixture(scope="module")
def perfect():
    """Maps of a network that draws the truth itself."""
    preset = simulator.preset("deeplense")
    truth = simulator.draw(preset, 41, range(90))
    kappa = simulator.substructure_convergence(truth, preset.observation.binned(2)).numpy()
    labels = np.array([CLASSES.index(name) for name in truth.images["class"]])
    rods = math.pi * truth.images["rod_theta_E"].to_numpy() ** 2
    significance = np.random.default_rng(0).normal(size=kappa.shape).astype(np.float32)
    return recovery.Maps(kappa, kappa, significance, labels, np.ones(90), np.full(90, 1.5), rods)


def found(records, **labels):
    rows = [row for row in records if all(row.get(key) == wanted for key, wanted in labels.items())]
    assert len(rows) == 1
    return rows[0]["value"]


def test_the_truth_itself_is_recovered_and_noise_is_not(perfect):
    result = sensitivity.recover(perfect, perfect, 0.1, 100, 1)
    network, noise = sensitivity.NETWORK, sensitivity.NO_NETWORK
    assert found(result.records, quantity="correlation", by=network, **{"class": "sphere"}) == 1
    assert abs(found(result.records, quantity="correlation", by=noise, **{"class": "vort"})) < 0.05
    assert found(result.records, quantity="correlation", by=sensitivity.OTHER, **{"class": "vort"}) < 0.8
    assert found(result.records, quantity="rod_mass_error", by=network) < 0.05
    assert found(result.records, quantity="rod_mass_error", by=sensitivity.CONSTANT) > 0.1
    assert set(result.masses["estimator"]) == set(sensitivity._MASSES)


def test_the_scale_comes_from_the_selection_split_alone(perfect):
    heavier = recovery.Maps(**{**vars(perfect), "rods": 2 * perfect.rods})
    result = sensitivity.recover(heavier, perfect, 0.1, 100, 1)
    # Calibrated on rods said to be twice as heavy, every mass comes out twice too large: an error of 1.
    error = found(result.records, quantity="rod_mass_error", by=sensitivity.NETWORK)
    assert error == pytest.approx(1, abs=0.1)


def test_predictions_of_other_images_are_refused(tmp_path):
    table = predictions.tabulate(["a", "b"], [0, 1], {"plain": np.zeros((2, 3)), "tta": np.zeros((2, 3))})
    path = tmp_path / "a.parquet"
    predictions.write_predictions(path, table)
    assert sensitivity.evidence_by_arm({"a": path}, "tta", np.array([0, 1]))["a"].shape == (2,)
    with pytest.raises(D4LensError, match="other images"):
        sensitivity.evidence_by_arm({"a": path}, "tta", np.array([1, 0]))


def test_the_significance_map_alone_finds_a_heavy_subhalo_and_no_light_one():
    made_by = simulator.preset("deeplense")
    truth = physical_limit.one_subhalo(made_by, 7, [1e10] * 3 + [1e5] * 3, [1.0] * 6, [0.5] * 6)
    above = {sensitivity.STRONGEST: 6.0}
    gained, hits = sensitivity.detections(truth, made_by, preset_model("deeplense", binning=2), {}, above, 0.01)
    assert hits[sensitivity.STRONGEST].tolist() == [True] * 3 + [False] * 3
    assert (np.sqrt(gained[:3]) > 10).all()
    assert (gained[3:] < 1).all()


def test_single_subhalos_are_shown_to_every_detector(monkeypatch):
    """Also to those that search without a network: answers of no rows would read as 0 %."""
    made_by, lens = simulator.preset("deeplense"), preset_model("deeplense", binning=2)
    monkeypatch.setattr(sensitivity, "_thresholds", lambda *_: {sensitivity.STRONGEST: 6.0})
    half = np.array([True, False] * 4)
    monkeypatch.setattr(sensitivity, "searched", lambda search, counts, *_: (half[: len(counts)], ~half[: len(counts)]))
    without = sensitivity.Blind(search=None, ratios=np.zeros(9), p_false=np.full(9, 0.5))
    parameters = SimpleNamespace(
        false_positive_rate=0.01, mass_edges=(1e9, 1e10), radius_edges=(0.5, 1.5), per_cell=8, seed=1
    )
    split = SimpleNamespace(made_by=made_by, lens=lens)
    _, curve = sensitivity.subhalo_map(split, {}, {}, parameters, without)
    assert {sensitivity.SEARCHES, sensitivity.DETECT} <= set(curve["arm"])


def test_an_answer_of_no_rows_is_refused():
    row = {"quantity": "detected", "class": "one subhalo", "by": "net", "sigma_low": 3.0, "value": 0.5, "n": 9}
    with pytest.raises(ZeroDivisionError):
        sensitivity.sensitivity_answers([row], "net", 0.01)
