"""Images of any origin before trained networks: what a network reads of them, what it says, and when to distrust it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from d4lens import models
from d4lens.classes import CLASSES
from d4lens.errors import D4LensError
from d4lens.macrofit import FitResult, SmoothLensModel, significance
from d4lens.models.averaging import exported, predict_logits
from d4lens.results.predictions import LOGITS, read

LIKE_TRAINING = 0.999
"""Share of the training images whose chi2 an image may have without being called unlike them."""
_NO = CLASSES.index("no")
_BATCH = 64


def batch_of(counts: Tensor, result: FitResult, lens: SmoothLensModel) -> dict[str, Tensor]:
    """What the networks read of a batch of images: counts, residual and significance (B, N, N), fit (B, 7); float32.

    A pixel without data has the smooth lens's counts and residual 0.
    """
    return {
        "counts": torch.where(torch.isfinite(counts), counts.float(), result.model_counts),
        "residual": result.residual,
        "significance": significance(counts, result.parameters, lens),
        "fit": result.columns.float(),
    }


def load_arms(folder: str | Path, names: Sequence[str], seed: int) -> dict[str, nn.Module]:
    """The trained networks `{folder}/{name}-{seed}.safetensors`, ready to predict. Raises D4LensError for one that is not
    there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: exported(models.load(Path(folder) / f"{name}-{seed}.safetensors")[0]).to(device) for name in names}


def logits(network: nn.Module, batch: Mapping[str, Tensor], *, tta: bool = False) -> NDArray[np.float64]:
    """Logits (B, 3) of a batch of any size, worked through in pieces."""
    n = len(batch["counts"])
    pieces = ({key: value[i : i + _BATCH] for key, value in batch.items()} for i in range(0, n, _BATCH))
    return predict_logits(network, pieces, tta).double().numpy()


def evidence(values: ArrayLike) -> NDArray[np.float64]:
    """Log odds (n,) that an image has substructure, of logits (n, 3): ln(p_sphere + p_vort) - ln p_no.

    Unlike 1 - p_no it does not saturate, so that thresholds at small false positive rates stay apart.
    """
    values = np.asarray(values, np.float64)
    return np.logaddexp.reduce(np.delete(values, _NO, axis=1), axis=1) - values[:, _NO]


def threshold(of_no: ArrayLike, false_positive_rate: float) -> float:
    """The evidence that a share `false_positive_rate` of images without substructure exceeds.

    Raises D4LensError without such images.
    """
    of_no = np.asarray(of_no, np.float64)
    if not len(of_no):
        raise D4LensError("a false positive rate needs images of class no; add some to the test split")
    return float(np.quantile(of_no, 1 - false_positive_rate, method="higher"))


def scored(path: str | Path, view: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Paths, labels (n,) and evidence (n,) that an evaluation's table of predictions holds for a view."""
    table = read(path)
    table = table[table["tta"] == (view == "tta")]
    return table["path"].tolist(), table["label"].to_numpy(np.int64), evidence(table[LOGITS].to_numpy())


def largest_chi2(of_training: ArrayLike) -> float:
    """chi2 a pixel beyond which `predict` flags an image: of all but a thousandth of the training images (n,) it is less."""
    return round(float(np.quantile(np.asarray(of_training, np.float64), LIKE_TRAINING)), 3)


def unlike_training(chi2: ArrayLike, converged: ArrayLike, largest: float) -> NDArray[np.bool_]:
    """Which images `predict` flags, (n,): the fit did not converge, or its chi2 lies above `largest`."""
    return ~np.asarray(converged, bool) | (np.asarray(chi2, np.float64) > largest)


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) of no trials."""
    if not n:
        return 0.0, 1.0
    centre, spread = successes + z * z / 2, z * np.sqrt(successes * (n - successes) / n + z * z / 4)
    return float(max(0.0, (centre - spread) / (n + z * z))), float(min(1.0, (centre + spread) / (n + z * z)))
