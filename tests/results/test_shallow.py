import numpy as np
import pandas as pd
import pytest

from d4lens.macrofit.columns import FIT_COLUMNS
from d4lens.results import shallow


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Fits whose chi2 tells `no` from the others, whose significance tells all, and whose parameters tell nothing."""
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(3), 100)
    for split in ("train", "test"):
        table = pd.DataFrame(generator.normal(size=(300, 7)), columns=list(FIT_COLUMNS))
        table["chi2"] = 1 + 0.3 * (labels > 0) + 0.02 * generator.normal(size=300)
        table.to_csv(tmp_path / f"{split}_fit.csv", index=False)
        maps = np.zeros((300, 8, 8), np.float16)
        maps[:, 3, 4] = 3 * labels + 0.1 * generator.normal(size=300)
        np.save(tmp_path / f"{split}_significance.npy", maps)

    class Split:
        pass

    Split.labels = labels
    monkeypatch.setattr(shallow.arrays, "load_split", lambda folder, split: Split)
    return tmp_path


def test_a_baseline_learns_what_its_numbers_tell_and_no_more(folders):
    found = shallow.measure(folders, folders, 100, 1)
    assert list(found) == list(shallow.INPUTS)
    for name, auc in {"parameters of the fit": 0.5, "chi2 of the fit": 0.83, "largest significance": 1.0}.items():
        assert found[name]["auc_macro"]["value"] == pytest.approx(auc, abs=0.07)
    assert found["chi2 of the fit"]["auc_no"]["value"] > 0.99
    assert found == shallow.measure(folders, folders, 100, 1)
