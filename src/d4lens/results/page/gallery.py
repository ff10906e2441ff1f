"""Images that one network got right and wrong, each explained by what it was given and what it drew."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from d4lens import models
from d4lens.classes import CLASSES
from d4lens.data import arrays
from d4lens.macrofit.columns import MAPS
from d4lens.models.averaging import exported
from d4lens.results import predictions
from d4lens.simulator import substructure_convergence
from d4lens.train.lenses import load_lenses

RESIDUAL, SIGNIFICANCE = 5, 10
"""Ends of the maps' scales in standard deviations: fixed, so that noise looks like noise."""


@dataclass(frozen=True)
class Example:
    """One image of a gallery.

    Attributes
    ----------
    path : str
        Its name.
    actual, predicted : str
        Classes.
    probabilities : list of (str, float)
        Class and probability, in the order of CLASSES.
    maps : list of (str, str)
        Title, and PNG as a data URI: the image and its residual first.
    facts : str
        The residual in numbers.
    """

    path: str
    actual: str
    predicted: str
    probabilities: list[tuple[str, float]]
    maps: list[tuple[str, str]]
    facts: str


def choose_examples(table: pd.DataFrame, n: int) -> tuple[list[int], list[int]]:
    """Choose images that were right and that were wrong, with TTA, the surest of each class in turn.

    Parameters
    ----------
    table : pandas.DataFrame
        Predictions of one network (`results.predictions`).
    n : int
        Images of each kind; fewer where there are fewer.

    Returns
    -------
    tuple of list of int
        Rows of the right ones and of the wrong ones.
    """
    _, labels, probabilities = predictions.of_view(table, "tta")
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    chosen = []
    for wanted in (right, ~right):
        rows = np.flatnonzero(wanted)
        rows = rows[np.argsort(-sure[rows], kind="stable")]
        place = pd.Series(labels[rows]).groupby(labels[rows]).cumcount().to_numpy()
        chosen.append(rows[np.lexsort((labels[rows], place))][:n].tolist())
    return chosen[0], chosen[1]


def examples(data: Path, weights: Path, table: pd.DataFrame, rows: list[int]) -> list[Example]:
    """Show test images as a network sees them, and the convergence that it draws.

    Parameters
    ----------
    data : Path
        The profile's data, with the folders arrays/ and macrofit/.
    weights : Path
        Of a network that draws a convergence ("kappa").
    table : pandas.DataFrame
        Its predictions.
    rows : list of int
        Which images of the test split.

    Returns
    -------
    list of Example
        In the order of `rows`.

    Raises
    ------
    D4LensError
        For folders or weights that cannot be read.
    """
    if not rows:
        return []
    network, _ = models.load(weights)
    observation = arrays.load_observation(data / "arrays")
    needs: Sequence[str] = network.needs  # type: ignore[assignment]
    lenses = load_lenses(data / "arrays", data / "macrofit", "test", (*MAPS, *needs), observation)
    with torch.inference_mode():
        batch = lenses[rows]
        drawn = exported(network)(batch)
    truth = _truth(data / "arrays", rows)
    found = []
    paths, labels, probabilities = predictions.of_view(table, "tta")
    for place, row in enumerate(rows):
        counts, residual, significance = (getattr(batch.rows(place), name).numpy() for name in ("counts", *MAPS))
        # residual = (counts - smooth) / sqrt(smooth), solved for sqrt(smooth)
        smooth = (np.sqrt(residual**2 + 4 * counts) - residual) / 2
        brightest = float(max(np.sqrt(counts).max(), smooth.max()))
        convergence = [("by the network", drawn["kappa"][place].numpy())]
        if truth is not None:
            convergence.append(("true", truth[place]))
        most = max(float(kappa.max()) for _, kappa in convergence)
        maps = [
            ("image, √counts", _png(np.sqrt(counts), "magma", 0, brightest)),
            (f"residual, ±{RESIDUAL} σ", _png(residual, "RdBu_r", -RESIDUAL, RESIDUAL)),
            ("smooth lens, √counts", _png(smooth, "magma", 0, brightest)),
            (f"significance, ±{SIGNIFICANCE} σ", _png(significance, "PuOr_r", -SIGNIFICANCE, SIGNIFICANCE)),
            *((f"convergence {of}, 0 to {most:.2g}", _png(kappa, "viridis", 0, most)) for of, kappa in convergence),
        ]
        if "source" in drawn:
            source = drawn["source"][place].numpy()
            maps.append(("source, reconstructed", _png(source, "magma", float(source.min()), float(source.max()))))
        p = [(name, float(value)) for name, value in zip(CLASSES, probabilities[row], strict=True)]
        facts = (
            f"Mean square of the residual {np.mean(residual**2):.2f}, which is 1 for noise alone; "
            f"one more mass would be significant by {significance.max():.1f} σ at most."
        )
        answer = max(p, key=lambda pair: pair[1])[0]
        found.append(Example(paths[row], CLASSES[labels[row]], answer, p, maps, facts))
    return found


def _truth(folder: Path, rows: list[int]) -> NDArray[np.float32] | None:
    """Render the true convergence (n, N, N) of the substructure, smoothed as in training; None where unknown."""
    truth = arrays.load_truth(folder, "test")
    if truth is None:
        return None
    return substructure_convergence(truth.rows(rows), arrays.load_observation(folder)).float().numpy()


def _png(image: NDArray[np.float32], colours: str, low: float, high: float) -> str:
    """Draw a map (N, N), first row at the bottom, with its scale from `low` to `high`, as a data URI."""
    share = np.clip((image - low) / ((high - low) or 1.0), 0, 1)
    pixels = (mpl.colormaps[colours](share)[::-1, :, :3] * 255).round().astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).quantize(128).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
