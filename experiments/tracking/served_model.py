"""The registered model as plain MLflow loads it.

This file is stored with the model and runs without this project.
"""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch


class SpeakerModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow's classes are untyped
    """Log-mel features in, speakers and probabilities out, by the exported program alone."""

    def load_context(self, context: Any) -> None:
        """Load the program and the speakers' names."""
        self._program = torch.export.load(context.artifacts["program"]).module()
        self._speakers = np.array(
            json.loads(Path(context.artifacts["card"]).read_text())["speakers"]
        )

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Return `speaker` (B,) and `probabilities` (B, speakers) for `mels` (B, T,
        n_mels) and `lengths` (B,).

        Frames from lengths[b] on do not count, whatever they hold. (MLflow takes type hints here
        for a schema, and fixes the names of the arguments.)
        """
        mels = torch.from_numpy(np.ascontiguousarray(model_input["mels"], dtype=np.float32))
        lengths = torch.from_numpy(np.ascontiguousarray(model_input["lengths"], dtype=np.int64))
        if not bool(((lengths >= 1) & (lengths <= mels.shape[1])).all()):
            raise ValueError(
                f"lengths must be from 1 to the {mels.shape[1]} frames of mels, but got "
                f"{lengths.tolist()}"
            )
        with torch.inference_mode():
            probabilities = self._program(mels, lengths).softmax(1).numpy()
        return {"speaker": self._speakers[probabilities.argmax(1)], "probabilities": probabilities}


mlflow.models.set_model(SpeakerModel())
