from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from d4lens import load_model
from d4lens.errors import D4LensError
from d4lens.inference.api import Known
from d4lens.results.outcome import read_outcome, write_outcome

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "field_faults.py"
PAGE = SCRIPT.parents[1] / "docs" / "reliability.md"


@pytest.fixture(scope="module")
def faults(load_tool):
    return load_tool(SCRIPT)


class Stub:
    """A model that answers as it is told, whatever the images."""

    def __init__(self, labels=(), flags=()):
        self.labels, self.flags = labels, flags
        self.probabilities = np.full((len(labels), 3), 1 / 3)

    def predict(self, images, **known):
        if known.get("sky") == 0:
            raise D4LensError("the sky must be above 0")
        return self


def test_each_image_is_right_flagged_or_wrong(faults):
    asked = faults.Given([None] * 5, ["no", "sphere", "vort", "no", "no"], {})
    answer = Stub(["no", "no", "vort", "", "sphere"], ["", "", "unlike training", "not converged", "too little noise"])
    assert faults.tally(answer, asked) == faults.Tally(tried=5, right=1, flagged=3, wrong=1)
    refused = faults.Given([None] * 5, asked.labels, {"sky": 0})
    assert faults.tally(Stub(), refused) == faults.Tally(tried=5, right=0, flagged=5, wrong=0)


def test_every_kind_has_several_variants_of_all_classes(faults, tmp_path):
    kinds = Counter(kind for kind, _, _ in faults.VARIANTS)
    assert set(kinds) == set(faults.KINDS)
    assert all(number > 1 for number in kinds.values())
    assert len({(kind, words) for kind, words, _ in faults.VARIANTS}) == len(faults.VARIANTS)
    for i, (_, words, make) in enumerate(faults.VARIANTS):
        folder = tmp_path / str(i)
        folder.mkdir()
        asked = make(faults.Bench(3, 5, folder))
        assert asked.labels == ["no", "sphere", "vort"], words
        assert len(asked.images) == 3, words
        assert set(asked.known) <= {*Known.__annotations__, "mask", "model"}, words
        for image in asked.images:
            if isinstance(image, Path):
                assert image.stat().st_size > 1000, words


def test_variants_are_what_they_are_called(faults, tmp_path):
    make = {(kind, words): maker for kind, words, maker in faults.VARIANTS}
    bench = faults.Bench(3, 5, tmp_path)
    whole = bench.lenses(n_pixels=160).images
    off = make["F", "three pixels"](bench).images
    assert np.array_equal(off, whole[:, 2:152, 5:155])
    levels = np.unique(make["B", "an array that was of 8 bits"](bench).images)
    assert np.isin(levels, np.arange(256) / 255).all()
    assert len(levels) > 100
    masked = make["D", "numpy's masked arrays"](bench).images
    assert [image.mask.sum() for image in masked] == [16] * 3
    assert all((image.data[image.mask] == 400).all() for image in masked)
    header = fits.getheader(make["E", "CDELT without CTYPE"](bench).images[0])
    assert header["CDELT2"] == pytest.approx(0.06 / 3600)
    assert "CTYPE1" not in header
    kernel = faults._kernel(0.05, faults._moffat(2.5, 0.17))
    assert kernel.sum() == pytest.approx(1)
    # A Moffat's wings: more light beyond twice its width than a Gaussian of the same half-light has.
    r = np.hypot(*np.meshgrid(np.arange(33) - 16, np.arange(33) - 16)) * 0.05
    assert kernel[r > 0.34].sum() > 5 * faults._kernel(0.05, faults._gaussian(0.072))[r > 0.34].sum()


def test_a_few_images_go_the_whole_way(faults, tmp_path):
    """The package's own network on images as it knows them: nearly all are right."""
    found = faults.measure(["-"], 12, 3, load_model())
    assert set(found) == {("-", "photon counts"), ("-", "min-max")}
    whole = faults.by_kind(found)["-"]
    assert whole.tried == 12
    assert whole.right + whole.flagged + whole.wrong == 12
    assert whole.right >= 10
    write_outcome(tmp_path / "reliability.json", faults.summarise(found, "x"))
    records = read_outcome(tmp_path / "reliability.json").records
    share = next(row for row in records if (row["kind"], row["variant"], row["quantity"]) == ("-", "", "right"))
    assert share["value"] == pytest.approx(whole.right / 12, abs=1e-6)
    assert share["ci_low"] < share["value"] <= share["ci_high"]


def test_probabilities_of_other_lenses_are_scored_beside_the_labels(faults):
    true, said = ["no"] * 4 + ["sphere"] * 4 + ["vort"] * 4, ["", "no", "no", "vort"] + ["sphere"] * 4 + [""] * 4
    p = np.repeat(np.eye(3), 4, 0)
    p[3] = [0, 0, 1]  # a smooth lens taken for a vortex
    answers = pd.DataFrame(p, columns=["no", "sphere", "vort"]).assign(true=true, label=said)
    found = {("O", "some"): faults.Tally(12, 6, 5, 1, answers), ("A", "others"): faults.Tally(3, 3, 0, 0, answers[:3])}
    scores = found["O", "some"].scores
    assert scores["AUC, no against rest"][0] == pytest.approx(7 / 8)
    assert scores["smooth, called structured"][0] == 0.25
    assert scores["labelled"][0] == pytest.approx(7 / 12)
    assert faults.table(found).splitlines()[-1].startswith("| some | 0.9")
    records = faults.summarise(found, "x").records
    assert [r["value"] for r in records if r["quantity"] == "labelled"] == [pytest.approx(7 / 12, abs=1e-6)]


def test_the_table_names_what_misses_the_target_and_stands_between_its_markers(faults):
    found = {
        ("A", "good"): faults.Tally(100, 98, 0, 2),
        ("A", "fine"): faults.Tally(100, 100, 0, 0),
        ("C", "bad"): faults.Tally(50, 30, 15, 5),
    }
    lines = faults.table(found).splitlines()
    assert lines[2].endswith("| 200 | 198 | 0 | 2 (1.0%) |  |")
    assert lines[3].endswith("| 50 | 30 | 15 | 5 (10.0%) | bad (5 of 50) |")
    assert faults.summarise(found, "x").answers == ["At most 3% of each kind are wrong and unflagged, but for C."]
    page = f"before\n{faults._BEGIN}\nold\n{faults._END}\nafter\n"
    assert faults.update(page, "new") == f"before\n{faults._BEGIN}\nnew\n{faults._END}\nafter\n"
    with pytest.raises(D4LensError, match="needs the markers"):
        faults.update("nothing", "new")
    assert faults.update(PAGE.read_text(encoding="utf-8"), "new") != PAGE.read_text(encoding="utf-8")
