"""Small texts among the artifacts of a run."""

import contextlib
import tempfile
from pathlib import Path

import mlflow
from mlflow.entities import Run

from experiments.tracking.run import STORE_ERRORS
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.common.files import read_bounded

CONFIG = "config.json"  # the point
MAX_BYTES = 64 << 20


def read_text(store: TrackingStore, run: Run, name: str) -> str:
    """Return a text among a run's artifacts; nothing where there is none, or no text."""
    with (
        contextlib.suppress(*STORE_ERRORS, UserError, UnicodeDecodeError),
        tempfile.TemporaryDirectory() as temporary,
    ):
        path = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{run.info.artifact_uri}/{name}",
            dst_path=temporary,
            tracking_uri=store.uri,
        )
        return read_bounded(Path(path), MAX_BYTES).decode()
    return ""
