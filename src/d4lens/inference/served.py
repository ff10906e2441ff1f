"""The registered model as MLflow runs it: this file is the model's code, the weights are its artefact.

`mlflow.pyfunc.load_model("models:/d4lenspinn/1").predict(images)` takes float64 images (n, N, N), photon counts or
min–max-normalised, and returns a table of label, probabilities, chi2 and flag, one row an image. `d4lens.predict` answers;
a label is empty where a flag withholds it. `params={"model": "marginal"}` chooses the smooth lens as `--model` does.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray

from d4lens.inference.api import load_model
from d4lens.macrofit.world import AUTO
from d4lens.table_files import PROBABILITIES

SERVED_COLUMNS = ["label", *PROBABILITIES, "chi2", "flag"]


class Served(PythonModel):
    """What MLflow calls."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights.

        Parameters
        ----------
        context : mlflow.pyfunc.PythonModelContext
            Where they are.

        Raises
        ------
        D4LensError
            If they cannot be used.
        """
        self.model = load_model(context.artifacts["weights"])

    def predict(
        self, context: PythonModelContext, model_input: NDArray[np.float64], params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify images.

        Parameters
        ----------
        context : mlflow.pyfunc.PythonModelContext
            Not read.
        model_input : numpy.ndarray
            (B, N, N), as `d4lens.predict` takes it.
        params : dict, optional
            `model`, one of MODELS.

        Returns
        -------
        pandas.DataFrame
            COLUMNS of `d4lens predict`, one row an image.
        """
        model = (params or {}).get("model", AUTO)
        return self.model.predict(model_input, model=model).table[SERVED_COLUMNS]


mlflow.models.set_model(Served())
