import numpy as np
import pytest
import torch
from answers import predict_paths
from torch import nn

from d4lens import simulator
from d4lens.classes import CLASSES
from d4lens.inference.pipeline import WEIGHTS
from d4lens.studies import mismatch

NATIVE = simulator.preset("deeplense").observation
CASES = {case.name: case for case in mismatch.cases(NATIVE.psf_sigma)}


def mean_chi2(case: str, constants: str, n: int = 3) -> float:
    counts, labels = mismatch.simulated(CASES[case], 31, n, NATIVE)
    for fitted in mismatch.fits(CASES[case], counts, NATIVE, 2):
        if fitted.constants == constants:
            return float(fitted.result.chi2[torch.from_numpy(labels == 0)].mean())
    raise AssertionError(constants)


def test_the_training_s_own_kind_is_the_simulator_s_to_the_byte():
    counts, labels = mismatch.simulated(CASES["deeplense"], 31, 4, NATIVE)
    preset = simulator.preset("deeplense")
    truth = simulator.draw(preset, 31, range(4), split="val")
    torch.testing.assert_close(counts, simulator.render(truth, preset), rtol=0, atol=0)
    assert [CLASSES[label] for label in labels] == truth.images["class"].tolist()


def test_random_orientation_turns_shear_and_source_only():
    turned, plain = (
        simulator.draw(simulator.preset("deeplense", CASES[name].overrides), 31, range(40), split="val")
        for name in ("random_orientation", "deeplense")
    )
    assert (turned.images["gamma2"] > 0.02).any()
    assert not (plain.images["gamma2"] > 0).any()
    assert (turned.images["e1"] < 0).any()
    assert turned.images["theta_E"].tolist() == plain.images["theta_E"].tolist()
    assert mean_chi2("random_orientation", "default") == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("case", ["lens_q_0.75", "sersic_n_1", "source_R_e_0.35"])
def test_wrong_constants_do_not_fit_and_right_ones_do(case):
    assert mean_chi2(case, "default") > 1.5
    assert mean_chi2(case, "known") == pytest.approx(1, abs=0.06)


def test_the_right_psf_fits_better_than_the_wrong_one():
    wrong, right, freed = (mean_chi2("psf_1.1", constants) for constants in mismatch.KNOWLEDGE)
    assert right < wrong
    assert freed < wrong


def test_the_clump_adds_light_and_its_noise_is_a_telescope_s():
    plain, _ = mismatch.simulated(CASES["deeplense"], 31, 6, NATIVE)
    clumpy, _ = mismatch.simulated(CASES["clumpy_source"], 31, 6, NATIVE)
    assert (clumpy.sum((1, 2)) > plain.sum((1, 2))).all()
    assert (clumpy == clumpy.round()).all()
    # Inversion of one number a pixel: where nothing was added, counts stay; where light was, they rise.
    assert (clumpy >= plain).all()
    again, _ = mismatch.simulated(CASES["clumpy_source"], 31, 2, NATIVE)
    torch.testing.assert_close(again, clumpy[:2], rtol=0, atol=0)


def test_every_case_has_its_fits():
    for name, expected in (("clumpy_source", ["default", "freed"]), ("model-i", ["default", "known", "freed"])):
        counts, _ = mismatch.simulated(CASES[name], 31, 3, NATIVE)
        made = list(mismatch.fits(CASES[name], counts, NATIVE, 2))
        assert [fitted.constants for fitted in made] == expected
        assert all(torch.isfinite(fitted.batch.significance).all() for fitted in made)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the package's weights are not built yet")
def test_predict_marks_what_no_smooth_lens_of_its_preset_fits(tmp_path):
    for name in ("source_R_e_0.7", "deeplense"):
        counts, _ = mismatch.simulated(CASES[name], 31, 3, NATIVE)
        for i, image in enumerate(counts.numpy()):
            np.save(tmp_path / f"{name}_{i}.npy", image)
    flags = predict_paths([tmp_path], tta=False, model="specialist").table.set_index("path")["flag"]
    marked = {name: [("unlike training" in flags[path]) for path in flags.index if name in path] for name in CASES}
    assert marked["source_R_e_0.7"] == [True] * 3
    assert marked["deeplense"] == [False] * 3
    table = predict_paths([tmp_path], tta=False).table.set_index("path")
    own = np.array(["deeplense" in path for path in table.index])
    assert (table["label"][own] == list(CLASSES)).all()
    # The others are fitted anew and read by the network of that fit, which labels what it is sure of.
    assert table["processing"][~own].str.endswith("fitted: marginal").all()
    assert all(label in ("", true) for label, true in zip(table["label"][~own], CLASSES, strict=True))


class Says(nn.Module):
    """The class that the first pixel names."""

    def forward(self, batch):
        return {"logits": 5 * nn.functional.one_hot(batch.counts[:, 0, 0].long(), 3).float()}


def test_what_is_measured_is_counted_by_hand():
    counts, _ = mismatch.simulated(CASES["deeplense"], 31, 6, NATIVE)
    fitted = next(mismatch.fits(CASES["deeplense"], counts, NATIVE, 2))
    labels = np.array([0, 1, 2, 0, 1, 2])
    said = torch.tensor([0, 1, 2, 1, 1, 2])
    fitted.batch.counts[:, 0, 0] = said.float()
    fitted.result.chi2[:] = torch.tensor([1.0, 1.0, 1.0, 9.0, 1.0, 9.0])
    rows = mismatch.measure_case(fitted, labels, {"says": Says()}, 5.0, 100, 1)
    value = {(row["arm"], row["quantity"]): (row["value"], row["n"]) for row in rows}
    assert value["", "unlike_training"] == (2 / 6, 6)
    assert value["", "chi2_no"] == (5.0, 2)
    assert value["says", "accuracy"] == (pytest.approx(5 / 6), 6)
    assert value["says", "false_alarms"] == (0.5, 2)
    assert value["says", "flagged_if_wrong"] == (1.0, 1)


def rows_of(scores: dict[tuple[str, str], tuple[float, float]]) -> list[dict]:
    rows = []
    for (case, constants), (auc, alarms) in scores.items():
        quantities = {"auc_macro": ("net", auc), "false_alarms": ("net", alarms)}
        quantities["unlike_training"] = ("", 1.0 if case == "clump" else 0.0)
        for quantity, (arm, number) in quantities.items():
            rows.append({"case": case, "constants": constants, "arm": arm, "quantity": quantity, "value": number})
    return rows


def test_the_answers_name_what_fails_and_what_mends_it():
    words = {
        "own": "our own kind",
        "lens": "an odd lens",
        "psf": "a wide PSF",
        "clump": "a clump",
        "fine": "a fine one",
        "wide": "a wide source",
    }
    scores = {("own", "default"): (0.99, 0.0), ("own", "freed"): (0.97, 0.0), ("fine", "default"): (0.98, 0.02)}
    scores |= {("clump", "default"): (0.5, 1.0), ("clump", "freed"): (0.6, 0.9)}
    scores |= {("lens", "default"): (0.6, 1.0), ("lens", "known"): (0.98, 0.0), ("lens", "freed"): (0.7, 0.0)}
    # An AUC as good as before, and every third smooth image a false alarm: that does not hold.
    scores |= {("psf", "default"): (0.99, 0.33), ("psf", "freed"): (0.98, 0.0)}
    # No false alarm, and no idea which substructure it is: another failure.
    scores |= {("wide", "default"): (0.5, 0.0), ("wide", "known"): (0.94, 0.01)}
    own, good, alarming, blind, known, freed, lost, flags, _ = mismatch.mismatch_answers(rows_of(scores), words, "net")
    assert "0.990" in own
    assert "0.970" in own
    assert good.endswith("a fine one (0.980, 2%).")
    assert alarming.endswith("an odd lens (0.600, 100%); a wide PSF (0.990, 33%); a clump (0.500, 100%).")
    assert blind.endswith(": a wide source (0.500, 0%).")
    assert known.endswith(": an odd lens (0.980, 0%).")
    assert freed.endswith(": a wide PSF (0.980, 0%).")
    assert "for: a clump (freed 0.600, 90%); a wide source (known 0.940, 1%), the best" in lost
    assert (
        "the 4 cases that fail they mark at least half of the images in 1, but not in an odd lens; a wide PSF" in flags
    )
