import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from d4lens.errors import D4LensError
from d4lens.results import genuine

LABELS = np.array([0, 0, 1, 1, 2, 2])


def table(answers, flags=("",) * 6):
    p = np.full((6, 3), 0.1)
    p[np.arange(6), answers] = 0.8
    columns = {"path": [f"{i}.npy" for i in range(6)], "p_no": p[:, 0], "p_sphere": p[:, 1], "p_vort": p[:, 2]}
    return pd.DataFrame(columns | {"chi2": np.arange(6.0), "flag": list(flags)})


def value(study, **labels):
    found = [r for r in study.records if all(r.get(key) == wanted for key, wanted in labels.items())]
    assert len(found) == 1
    return found[0]


def test_right_answers_are_counted_by_arm_and_class():
    flags = ("", "", "", "", "unlike training", "no photon counts")
    tables = {("good", 0, "a1"): table([0, 0, 1, 1, 2, 2]), ("bad", 3, "b2"): table([0, 1, 1, 2, 2, 2], flags)}
    study = genuine.score_arms(LABELS, tables, "make it")
    assert value(study, arm="good", quantity="auc_macro")["value"] == 1
    assert value(study, arm="bad", seed=3, quantity="right", **{"class": "all"})["value"] == pytest.approx(
        4 / 6, abs=1e-6
    )
    assert value(study, arm="bad", quantity="right", **{"class": "sphere"})["value"] == 0.5
    assert value(study, arm="bad", quantity="flagged")["value"] == pytest.approx(1 / 6, abs=1e-6)
    assert value(study, quantity="chi2", **{"class": "vort"})["value"] == 4.5
    assert (
        study.answers[0]
        == "good (seed 0): 6 of 6 right, a share of 0.61 to 1.00 (95 %, Wilson); macro AUC 1.000, 0 flagged."
    )
    share = value(study, weights="b2", quantity="right", **{"class": "all"})
    wilson = binomtest(4, 6).proportion_ci(method="wilson")
    assert (share["ci_low"], share["ci_high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-6)
    assert "make it" in study.cannot_tell[1]


def test_an_image_that_cannot_be_used_is_named():
    broken = table([0] * 6, ("", "", "failed: constant", "", "", ""))
    with pytest.raises(D4LensError, match=r"2\.npy.*constant"):
        genuine.score_arms(LABELS, {("a", 0, "a1"): broken}, "")
