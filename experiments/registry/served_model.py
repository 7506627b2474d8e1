"""The registered model as plain MLflow loads and serves it.

This file is stored with the model and runs without this project.
"""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

MAX_FRAMES = 10_000  # of an utterance: 100 s; the time of attention grows with their square
SHOWN = 80  # letters of a bad value


class BadRequestError(MlflowException):  # type: ignore[misc]  # mlflow's classes are untyped
    """What is wrong with a request, in one line; the server answers with it and status 400."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The reason alone: the server would put the whole request before it."""
        return str(self.args[0])

    @message.setter
    def message(self, text: str) -> None:
        pass


class SpeakerModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow's classes are untyped
    """Log-mel features in, speakers and probabilities out, by the exported program alone."""

    def load_context(self, context: Any) -> None:
        """Load the program and the speakers' names."""
        self._program = torch.export.load(context.artifacts["program"]).module()
        card = json.loads(Path(context.artifacts["card"]).read_text())
        self._speakers, self._n_mels = np.array(card["speakers"]), int(card["n_mels"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Return `speaker` (B,), its `probability` (B,) and all `probabilities` (B, speakers).

        model_input is a table of B utterances: `mels` holds an utterance's frames (T, n_mels), T
        may differ; of these only the first `lengths` count, where that column is given. (MLflow
        takes type hints here for a schema, and fixes the names of the arguments.)
        """
        table = dict(model_input)
        if not len(table["mels"]):
            raise BadRequestError("mels must hold at least one utterance, but holds none")
        lengths = table.get("lengths", [None] * len(table["mels"]))
        utterances = [
            self._frames(number, mels, length)
            for number, (mels, length) in enumerate(zip(table["mels"], lengths, strict=True))
        ]
        with torch.inference_mode():
            logits = [self._program(mels, torch.tensor([mels.shape[1]])) for mels in utterances]
            probabilities = torch.cat(logits).softmax(1).numpy()
        best = probabilities.argmax(1)
        return {
            "speaker": self._speakers[best],
            "probability": probabilities.max(1),
            "probabilities": probabilities,
        }

    def _frames(self, number: int, mels: Any, length: Any) -> torch.Tensor:
        """Return an utterance, float32 (1, T, n_mels). Raises BadRequestError for what is none."""
        rule = f"an utterance must be 1 to {MAX_FRAMES:,} frames of {self._n_mels} finite numbers"
        bad = f"{rule}, but number {number} of mels"
        try:
            frames = np.asarray(mels)
        except ValueError as error:
            raise BadRequestError(f"{bad} has frames that differ in size") from error
        if frames.ndim != 2 or frames.shape[1] != self._n_mels:
            shown = f"is {mels!r}"[:SHOWN] if frames.ndim == 0 else f"has the shape {frames.shape}"
            raise BadRequestError(f"{bad} {shown}")
        if frames.dtype.kind not in "iuf":
            raise BadRequestError(f"{bad} holds what is no number: {str(mels)[:SHOWN]}")
        if length is not None and not (type(length) is int and 1 <= length <= len(frames)):
            raise BadRequestError(
                f"lengths must be whole numbers from 1 to an utterance's frames, {len(frames)}, "
                f"but that of number {number} is {str(length)[:SHOWN]}"
            )
        frames = frames[:length]
        if not 1 <= len(frames) <= MAX_FRAMES:
            raise BadRequestError(f"{bad} has {len(frames):,} frames; send excerpts")
        with np.errstate(over="ignore"):
            kept = np.ascontiguousarray(frames, dtype=np.float32)
        if not np.isfinite(kept).all():
            frame, band = np.argwhere(~np.isfinite(kept))[0]
            raise BadRequestError(f"{bad} has {frames[frame, band]} at frame {frame}, band {band}")
        return torch.from_numpy(kept)[None]


mlflow.models.set_model(SpeakerModel())
