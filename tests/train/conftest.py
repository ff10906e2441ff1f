"""A small data set as the stages before `train` leave it: simulated truth, Poisson counts, a made-up fit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from d4lens.classes import CLASSES
from d4lens.data.arrays import MANIFEST, MANIFEST_COLUMNS, OBSERVATION_FILE
from d4lens.files import write_json
from d4lens.macrofit.columns import FIT_COLUMNS, MAPS
from d4lens.observation import Observation
from d4lens.params import LossWeights, TrainParams
from d4lens.simulator import draw, preset

N_PIXELS = 33
SIZES = {"train": 13, "select": 9, "test": 3}


def write(root: Path, sizes: dict[str, int] = SIZES, n_pixels: int = N_PIXELS) -> tuple[Path, Path]:
    """(arrays folder, macrofit folder)."""
    rng = np.random.default_rng(5)
    arrays, fits = root / "arrays", root / "macrofit"
    arrays.mkdir(parents=True)
    fits.mkdir()
    truth = draw(preset("deeplense"), 1, range(sum(sizes.values())))
    truth.images.to_csv(arrays / "truth.csv", index=False)
    truth.subhalos.to_csv(arrays / "subhalos.csv", index=False)
    rows, start = [], 0
    for split, size in sizes.items():
        images = truth.images.iloc[start : start + size]
        start += size
        # The class shows in the brightness: enough for a loss to fall within a few steps.
        labels = [CLASSES.index(name) for name in images["class"]]
        counts = rng.poisson(40 + 20 * np.array(labels)[:, None, None], (size, n_pixels, n_pixels)).astype(np.uint16)
        np.save(arrays / f"{split}.npy", counts)
        for name in MAPS:
            np.save(fits / f"{split}_{name}.npy", rng.normal(size=counts.shape).astype(np.float16))
        fit = pd.DataFrame(rng.normal(0.1, 0.05, (size, len(FIT_COLUMNS))), columns=list(FIT_COLUMNS))
        fit["theta_E"] += 1.2
        fit.insert(0, "path", images["path"].to_numpy())
        fit.to_csv(fits / f"{split}_fit.csv", index=False)
        for row, (path, label) in enumerate(zip(images["path"], labels)):
            rows.append([split, row, path, label, CLASSES[label], 700, 0, f"{start}{row}"])
    pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS)).to_csv(arrays / MANIFEST, index=False)
    facts = Observation(n_pixels, 7.5 / n_pixels, 0.08625, 40.0).to_dict()
    write_json(arrays / OBSERVATION_FILE, {**facts, "units": "counts", "bin": 2})
    return arrays, fits


def parameters(**changes: object) -> TrainParams:
    values = {
        "batch_size": 5,
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        "warmup_fraction": 0.1,
        "gradient_clip": 1.0,
        "label_smoothing": 0.0,
        "augment": True,
        "precision": "32-true",
        "losses": dict.fromkeys(LossWeights.model_fields, 0.01),
        "epochs": 4,
        "presets": None,
        "limit": None,
    }
    return TrainParams(**{**values, **changes})


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "data")


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., tuple[Path, Path]]:
    return write


@pytest.fixture(scope="session")
def params() -> Callable[..., TrainParams]:
    return parameters
