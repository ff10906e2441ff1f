"""The registered model as MLflow runs it: this file is the model's code, the weights are its artefact.

`mlflow.pyfunc.load_model("models:/d4lenspinn/1").predict(images)` takes float64 images (n, N, N), photon counts or
min–max-normalised, and returns a table of label, probabilities, chi2 and flag, one row an image. It goes the way of
`d4lens predict`: the images are written as .npy files, and the same function answers; a label is empty where a flag
withholds it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from d4lens.classes import CLASSES
from d4lens.inference.pipeline import predict_table

COLUMNS = ["label", *(f"p_{name}" for name in CLASSES), "chi2", "flag"]


class Served(PythonModel):
    """What MLflow calls."""

    def load_context(self, context: PythonModelContext) -> None:
        """Note where the weights lie."""
        self.weights = context.artifacts["weights"]

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """COLUMNS of `d4lens predict`. Raises D4LensError for weights that cannot be used."""
        with TemporaryDirectory() as folder:
            for row, image in enumerate(model_input):
                np.save(Path(folder) / f"{row:09d}.npy", image)
            answer = predict_table([folder], self.weights)
        return answer.table[COLUMNS]


mlflow.models.set_model(Served())
