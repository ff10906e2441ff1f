from pathlib import Path

import numpy as np
import pytest
from answers import predict_paths

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "soak.py"


@pytest.fixture(scope="module")
def soak(load_tool):
    return load_tool(SCRIPT)


def test_eighty_images_every_one_answered_or_reported(soak, tmp_path, monkeypatch):
    """`tools/soak.py` in small, with one image in ten corrupt; 20,000 by hand (docs/reliability.md)."""
    monkeypatch.setattr(soak, "EVERY", 10)
    monkeypatch.setattr(soak, "_FLAT_MEGABYTES", 1000.0)  # a run of seconds: what is measured is warming up
    figures = soak.soak(80, 0, tmp_path)
    assert (figures["images"], figures["corrupt"]) == (80, 8)


def test_a_predict_that_swallows_an_image_is_found(soak, tmp_path, monkeypatch):
    classify = soak.classify

    def careless(sources, classifier):
        answer = classify(sources, classifier)
        answer.table.loc[3, "flag"] = "failed: invented"
        return answer

    monkeypatch.setattr(soak, "classify", careless)
    with pytest.raises(AssertionError, match=r"reported \['4.npy'\] without reason"):
        soak.soak(4, 0, tmp_path)


def test_every_kind_of_damage_is_refused(soak, tmp_path):
    image = np.random.default_rng(0).random((1, 150, 150))
    for kind in range(8):
        (tmp_path / f"{kind}.npy").write_bytes(soak.corrupt(image, kind))
    answer = predict_paths([tmp_path])
    assert len(answer.failures) == 8
