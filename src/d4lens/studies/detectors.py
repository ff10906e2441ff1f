"""Networks as detectors of substructure: their evidence for it, and the threshold that a false-alarm rate sets."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.models.averaging import predict_logits
from d4lens.models.batch import LensBatch
from d4lens.results.predictions import LOGITS, read_predictions

_NO = CLASSES.index("no")
_BATCH = 64


def logits(network: nn.Module, batch: LensBatch) -> NDArray[np.float64]:
    """Predict a batch of any size, in pieces.

    Parameters
    ----------
    network : nn.Module
        The network.
    batch : LensBatch
        B images.

    Returns
    -------
    numpy.ndarray
        Logits (B, 3), in the order of CLASSES.
    """
    pieces = (batch.rows(slice(i, i + _BATCH)) for i in range(0, len(batch), _BATCH))
    return predict_logits(network, pieces, tta=False).double().numpy()


def evidence(values: ArrayLike) -> NDArray[np.float64]:
    """Compute the log odds that an image has substructure: ln(p_sphere + p_vort) - ln p_no.

    Unlike 1 - p_no it does not saturate, so that thresholds at small false positive rates stay apart.

    Parameters
    ----------
    values : array_like
        Logits, (n, 3).

    Returns
    -------
    ndarray
        (n,).
    """
    values = np.asarray(values, np.float64)
    return np.asarray(np.logaddexp.reduce(np.delete(values, _NO, axis=1), axis=1) - values[:, _NO])


def threshold(of_no: ArrayLike, false_positive_rate: float) -> float:
    """Find the evidence that a given share of images without substructure exceeds.

    Parameters
    ----------
    of_no : array_like
        Evidence of images of class no, (n,).
    false_positive_rate : float
        The share.

    Returns
    -------
    float

    Raises
    ------
    D4LensError
        Without such images.
    """
    of_no = np.asarray(of_no, np.float64)
    if not len(of_no):
        raise D4LensError("a false positive rate needs images of class no; add some to the test split")
    return float(np.quantile(of_no, 1 - false_positive_rate, method="higher"))


def scored(path: str | Path, view: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Read the evidence that an evaluation's table of predictions holds for a view.

    Parameters
    ----------
    path : str or Path
        The table.
    view : str
        One of VIEWS.

    Returns
    -------
    paths : list of str
        The images' names.
    labels : numpy.ndarray
        (n,) indices into CLASSES.
    evidence : numpy.ndarray
        (n,) the evidence for substructure.
    """
    table = read_predictions(path)
    table = table[table["tta"] == (view == "tta")]
    return table["path"].tolist(), table["label"].to_numpy(np.int64), evidence(table[LOGITS].to_numpy())
