import numpy as np
import pytest

from d4lens.errors import D4LensError
from d4lens.models.scores import softmax
from d4lens.results import predictions
from d4lens.studies import detectors


def test_evidence_is_the_log_odds_of_substructure_and_does_not_saturate():
    logits = np.random.default_rng(0).normal(0, 3, (50, 3))
    p = softmax(logits)
    np.testing.assert_allclose(detectors.evidence(logits), np.log((p[:, 1] + p[:, 2]) / p[:, 0]), rtol=1e-9)
    assert detectors.evidence([[0, 500.0, 0]])[0] < detectors.evidence([[0, 600.0, 0]])[0]


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
def test_the_threshold_lets_its_share_of_smooth_images_through(rate):
    of_no = np.random.default_rng(1).normal(size=10_000)
    assert (of_no > detectors.threshold(of_no, rate)).mean() == pytest.approx(rate, abs=2e-4)


def test_no_smooth_image_is_no_threshold():
    with pytest.raises(D4LensError, match="class no"):
        detectors.threshold([], 0.01)


def test_scored_reads_the_view_asked_for(tmp_path):
    plain, tta = np.eye(3), 5 * np.eye(3)
    table = predictions.tabulate(["a", "b", "c"], [0, 1, 2], {"plain": plain, "tta": tta})
    predictions.write_predictions(tmp_path / "d4cnn-0.parquet", table)
    for view, logits in (("plain", plain), ("tta", tta)):
        paths, labels, evidence = detectors.scored(tmp_path / "d4cnn-0.parquet", view)
        assert (paths, labels.tolist()) == (["a", "b", "c"], [0, 1, 2])
        np.testing.assert_allclose(evidence, detectors.evidence(logits), rtol=1e-6)
