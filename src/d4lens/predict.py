"""Images in, table out: the whole way of an image through the fit and the network, for every user of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from d4lens import models
from d4lens.classes import CLASSES
from d4lens.data import images
from d4lens.errors import D4LensError
from d4lens.evaluate.tta import exported, predict_logits
from d4lens.macrofit import TABLE_COLUMNS, FitResult, SmoothLensModel, fit, preset_model, significance
from d4lens.observation import Observation
from d4lens.progress import Meter

PREDICT_COLUMNS = ("path", "label", *(f"p_{name}" for name in CLASSES), "chi2", "flag")
WEIGHTS = Path(str(files("d4lens"))) / "weights" / "d4lenspinn.safetensors"
"""The network that ships with the package."""
PRESET = "deeplense"
"""What is known of a lens by default: the simulator's preset behind the shipped weights."""

_BATCH = 64


@dataclass
class Answer:
    """A table with one row an image, in the order found, and the (path, reason) of those that could not be used."""

    table: pd.DataFrame
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Batch:
    names: list[str]
    counts: Tensor
    broken: list[tuple[str, str]]


def predict_table(paths: Sequence[str | Path], weights: str | Path | None = None, *, tta: bool = True) -> Answer:
    """Classify every image under `paths` (.npy files, folders, zips): PREDICT_COLUMNS.

    weights: a model.safetensors of this project; None takes those of the package. tta: average over the eight symmetries
    of the square. chi2 is that of the smooth lens per pixel. flag: empty, `not converged` where the smooth fit did not,
    `unlike training` where its chi2 lies beyond all but a thousandth of the training set's, or why an image could not be
    used. Raises D4LensError for paths without images and for unusable weights.
    """
    network, config = models.load(weights or default_weights())
    observation = Observation.from_dict(config["observation"])
    network = exported(network)
    rows: dict[str, list[object]] = {}
    failures = []
    sources = list(images.find(paths))
    lens = lens_of(observation)
    for batch in _batches(sources, observation):
        failures += batch.broken
        for name, reason in batch.broken:
            rows[name] = [name, "", *[float("nan")] * len(CLASSES), float("nan"), f"failed: {reason}"]
        if not batch.names:
            continue
        result = fit(batch.counts, lens)
        probabilities = predict_logits(network, [network_batch(batch.counts, result, lens)], tta).softmax(1)
        for name, p, chi2, converged in zip(batch.names, probabilities, result.chi2, result.converged, strict=True):
            flag = _flag(bool(converged), float(chi2), config.get("largest_chi2"))
            rows[name] = [name, CLASSES[int(p.argmax())], *p.tolist(), float(chi2), flag]
    table = pd.DataFrame([rows[source.name] for source in sources], columns=list(PREDICT_COLUMNS))
    return Answer(table, failures)


def _flag(converged: bool, chi2: float, largest: float | None) -> str:
    if not converged:
        return "not converged"
    return "unlike training" if largest is not None and chi2 > largest else ""


def fit_table(paths: Sequence[str | Path]) -> Answer:
    """Fit the smooth lens of the default preset to every image under `paths`: TABLE_COLUMNS, lengths in arcsec.

    An image that nothing fits has its chi2 and `converged` False. Raises D4LensError for paths without images.
    """
    lens = preset_model(PRESET)
    rows: dict[str, list[object]] = {}
    failures = []
    sources = list(images.find(paths))
    for batch in _batches(sources, lens.observation):
        failures += batch.broken
        for name, _ in batch.broken:
            rows[name] = [name, *[float("nan")] * (len(TABLE_COLUMNS) - 2), False]
        if batch.names:
            table = fit(batch.counts, lens).table(batch.names)
            rows |= {row[0]: list(row) for row in table.itertuples(index=False)}
    table = pd.DataFrame([rows[source.name] for source in sources], columns=list(TABLE_COLUMNS))
    return Answer(table, failures)


def network_batch(counts: Tensor, result: FitResult, lens: SmoothLensModel) -> dict[str, Tensor]:
    """What the networks read of a batch of images: counts, residual and significance (B, N, N), fit (B, 7); float32."""
    return {
        "counts": counts.float(),
        "residual": result.residual,
        "significance": significance(counts, result.parameters, lens),
        "fit": result.columns.float(),
    }


def default_weights() -> Path:
    """The weights in the package. Raises D4LensError where they are missing."""
    if not WEIGHTS.is_file():
        raise D4LensError(f"the package holds no weights ({WEIGHTS.name}); train a model and name its file: --weights")
    return WEIGHTS


def _batches(sources: Sequence[images.ImageSource], observation: Observation) -> Iterator[_Batch]:
    """Images as counts on the pixels of `observation`, in batches."""
    waiting: list[tuple[str, np.ndarray]] = []
    broken: list[tuple[str, str]] = []
    with Meter(len(sources), "images") as meter:
        for done, source in enumerate(sources, 1):
            try:
                waiting.append((source.name, counts_of(source, observation)))
            except D4LensError as error:
                broken.append((source.name, str(error)))
            if len(waiting) == _BATCH or done == len(sources):
                counts = np.stack([pixels for _, pixels in waiting]) if waiting else np.empty(0)
                yield _Batch([name for name, _ in waiting], torch.from_numpy(counts.astype(np.float32)), broken)
                waiting, broken = [], []
            meter.to(done)


def counts_of(source: images.ImageSource, observation: Observation) -> np.ndarray:
    """Photon counts (N, N) of one image on the pixels of `observation`. Raises D4LensError saying what does not fit."""
    image = source.load()
    factor, rest = divmod(len(image), observation.n_pixels)
    if rest or not factor:
        raise D4LensError(
            f"it is {len(image)} pixels a side; this model takes {observation.n_pixels} pixels of "
            f"{observation.pixel_scale:g} arcsec or a whole multiple, which is binned"
        )
    return images.observe(image, observation.sky / factor**2, factor, units=images.COUNTS).pixels


def lens_of(observation: Observation) -> SmoothLensModel:
    """The smooth lens on the pixels of `observation`, sampled on the preset's own finer ones where it is binned."""
    native = preset_model(PRESET).observation
    binning = max(1, round(observation.pixel_scale / native.pixel_scale))
    if native.binned(binning) != observation:
        native, binning = observation, 1
    return preset_model(PRESET, native, binning)
