"""Genuine images as a row of their own: what networks trained on simulation alone say of images with a known class."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.flags import Flag
from d4lens.models import scores
from d4lens.results.metrics import wilson
from d4lens.results.outcome import Outcome, record
from d4lens.table_files import PROBABILITIES


def score_arms(labels: NDArray[np.int64], tables: Mapping[tuple[str, int, str], pd.DataFrame], command: str) -> Outcome:
    """Score every trained arm on the same genuine images. The scores are reported, and decide nothing.

    Parameters
    ----------
    labels : numpy.ndarray
        True classes, (n,), indices into CLASSES.
    tables : Mapping of (str, int, str) to pandas.DataFrame
        By (arm, seed, fingerprint of the weights): `predict`'s rows of the n images in the labels' order, with class
        probabilities, chi2 and flag.
    command : str
        What makes the study again.

    Returns
    -------
    Outcome
        Shares with Wilson intervals, and macro AUC, by arm.

    Raises
    ------
    D4LensError
        For an image that could not be used.
    """
    records: list[dict[str, Any]] = []
    counts = {name: int((labels == i).sum()) for i, name in enumerate(CLASSES)}
    n, said = len(labels), []
    for (arm, seed, fingerprint), table in tables.items():
        failed = table.loc[table["flag"].str.startswith("failed"), "path"]
        if len(failed):
            raise D4LensError(f"{failed.iloc[0]} cannot be used: {table.loc[failed.index[0], 'flag']}")
        probabilities = table[PROBABILITIES].to_numpy(np.float64)
        right = probabilities.argmax(1) == labels
        auc = scores.score(labels, probabilities)["auc_macro"]
        by: dict[str, Any] = {"arm": arm, "seed": seed, "weights": fingerprint}
        records.append(record(auc, math.nan, math.nan, n, quantity="auc_macro") | by)
        for name, which in (("all", np.ones(n, bool)), *((c, labels == i) for i, c in enumerate(CLASSES))):
            hits, of = int(right[which].sum()), int(which.sum())
            records.append(record(hits / of, *wilson(hits, of), of, quantity="right") | {"class": name} | by)
        flagged = int(table["flag"].str.contains(f"{Flag.UNLIKE_TRAINING.text}|{Flag.NOT_CONVERGED.text}").sum())
        records.append(record(flagged / n, *wilson(flagged, n), n, quantity="flagged") | by)
        low, high = wilson(int(right.sum()), n)
        said.append(
            f"{arm} (seed {seed}): {int(right.sum())} of {n} right, a share of {low:.2f} to {high:.2f} (95 %, Wilson); "
            f"macro AUC {auc:.3f}, {flagged} flagged."
        )
    any_table = next(iter(tables.values()))
    for i, name in enumerate(CLASSES):
        chi2 = any_table.loc[labels == i, "chi2"]
        records.append(record(chi2.mean(), chi2.min(), chi2.max(), len(chi2), quantity="chi2") | {"class": name})
    return Outcome(
        question="Do networks trained on simulated images alone label genuine ones correctly?",
        answers=said,
        cannot_tell=[
            f"With {n} images ({', '.join(f'{number} {name}' for name, number in counts.items())}) even an arm that labels all of "
            f"them correctly is only known to be right in at least {wilson(n, n)[0]:.0%} of cases. A difference of one or two "
            "images between arms is not significant.",
            f"The images belong to their publishers and are not in this repository. With them, `{command}` makes this file again.",
        ],
        records=records,
    )
