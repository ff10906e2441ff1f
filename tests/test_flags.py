from pathlib import Path

import numpy as np
import pytest
import torch

from d4lens import flags
from d4lens.flags import DECIDED, Flag, Raised, abstains, decided, flags_markdown, join_flags
from d4lens.inference.pipeline import Classifier, undecided

PAGE = Path(__file__).resolve().parents[1] / "docs" / "your-images.md"


def test_the_page_explains_every_flag():
    written = PAGE.read_text(encoding="utf-8").split("<!-- flags:begin -->\n")[1].split("\n<!-- flags:end -->")[0]
    assert written == flags_markdown()
    assert len(written.splitlines()) == 2 + len(Flag)


def test_flags_are_joined_and_one_withholds_the_label():
    raised = [Raised(Flag.UNLIKE_TRAINING), Raised(Flag.TOO_LITTLE_NOISE)]
    assert join_flags(raised) == "unlike training; too little noise"
    assert not abstains(raised)
    raised.append(Raised(Flag.AT_ITS_BOUND, "theta_E, e1"))
    assert join_flags(raised).endswith("; at its bound: theta_E, e1")
    assert abstains(raised)
    assert join_flags([]) == ""


def test_an_answer_below_what_its_network_asks_for_is_undecided():
    usual, strict = Classifier(torch.nn.Identity(), {}), Classifier(torch.nn.Identity(), {"decided": 0.9})
    for probabilities, classifier, words in (
        ((0.5, 0.4, 0.1), usual, "undecided"),
        ((0.2, 0.76, 0.04), usual, ""),
        ((0.2, 0.76, 0.04), strict, "undecided"),
        ((0.05, 0.91, 0.04), strict, ""),
    ):
        raised = undecided(torch.tensor(probabilities), classifier)
        assert join_flags(raised) == words
        assert abstains(raised) == bool(words)


def test_a_network_whose_answers_are_too_sure_asks_for_more():
    """Of 60 answers at 0.8 half are wrong, of 40 at 0.9 one is."""
    likeliest = np.repeat([0.8, 0.9], [60, 40])
    probabilities = np.stack([likeliest, 1 - likeliest, np.zeros(100)], 1)
    labels = np.array([0, 1] * 30 + [1] + [0] * 39)
    assert decided(probabilities, labels) == pytest.approx(0.801)
    assert decided(probabilities, np.zeros(100, np.int64)) == DECIDED
    assert decided(probabilities, np.ones(100, np.int64)) == 1.0


def test_no_two_flags_have_the_same_words():
    assert len({flag.text for flag in Flag}) == len(Flag)


def test_the_flag_is_predict_s_rule():
    chi2 = np.arange(1, 1001, dtype=float)
    largest = flags.largest_chi2(chi2)
    assert (chi2 > largest).sum() == 1
    flagged = flags.unlike_training([1.0, 1e4, 1.0, np.inf], [True, True, False, True], largest)
    assert flagged.tolist() == [False, True, True, True]
