"""Copies of a run's checkpoint among its artifacts, where every machine can read them."""

import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

import mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from experiments.tracking.run import STORE_ERRORS, TrackedRun

FOLDER = "checkpoint"  # of a run's artifacts
NAME = re.compile(r"step-(\d{1,18})\.checkpoint")
FLUSH_S = 5.0  # that a training which is interrupted waits for its last copy


def copies_of(run: TrackedRun) -> "CheckpointCopies | None":
    """Return the copies of a run's checkpoint, where its store is a server, which other machines
    reach as well.
    """
    uri = mlflow.get_tracking_uri()
    return CheckpointCopies(run.artifact_uri(), uri) if uri.startswith("http") else None


class CheckpointCopies:
    """Copies of one run's checkpoint, each sent by a thread of its own in place of the one before.

    One that cannot be sent is missing, and no more than that: the next one is tried as well.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str) -> None:
        self._repository = get_artifact_repository(artifact_uri, tracking_uri=tracking_uri)
        self._thread: threading.Thread | None = None
        self.seconds = 0.0  # that the last one took

    def is_sending(self) -> bool:
        """Tell whether a copy is on its way."""
        return self._thread is not None and self._thread.is_alive()

    def send(self, path: Path, step: int) -> None:
        """Begin to send a checkpoint of a training that has come to a step, if none is on its way.

        What lies at `path` may be replaced meanwhile.
        """
        if self.is_sending():
            return
        folder = tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", suffix=".partial"
        )
        frozen = Path(folder.name) / f"step-{step}.checkpoint"
        try:
            os.link(path, frozen)
        except OSError:  # a file system without links
            shutil.copyfile(path, frozen)
        self._thread = threading.Thread(target=self._send, args=(frozen, folder), daemon=True)
        self._thread.start()

    def flush(self, path: Path, step: int) -> None:
        """Send a checkpoint now, and wait for it, but not for long."""
        deadline = time.monotonic() + FLUSH_S
        self._wait(deadline)  # for one that is on its way
        self.send(path, step)
        self._wait(deadline)

    def fetch(self, path: Path, step: int) -> None:
        """Bring the last copy to `path`, if it is of a later step than this.

        Raises what a store raises that does not answer.
        """
        steps = self._steps()
        if last := max((each for each in steps if each > step), default=None):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                dir=path.parent, prefix=f".{path.name}.", suffix=".partial"
            ) as folder:
                found = self._repository.download_artifacts(steps[last], folder)
                Path(found).replace(path)

    def are_there(self) -> bool:
        """Tell whether there is any."""
        return bool(self._steps())

    def remove(self) -> None:
        """Remove all copies."""
        if self._thread:
            self._thread.join()
        for place in self._steps().values():
            self._repository.delete_artifacts(place)

    def _wait(self, deadline: float) -> None:
        if self._thread:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _send(self, path: Path, folder: "tempfile.TemporaryDirectory[str]") -> None:
        began = time.monotonic()
        with folder, contextlib.suppress(*STORE_ERRORS):
            before = self._steps()
            self._repository.log_artifact(str(path), FOLDER)
            for place in before.values():
                if Path(place).name != path.name:
                    self._repository.delete_artifacts(place)
        self.seconds = time.monotonic() - began

    def _steps(self) -> dict[int, str]:
        """Return where copies lie, by their steps."""
        places = [each.path for each in self._repository.list_artifacts(FOLDER)]
        found = {place: NAME.fullmatch(Path(place).name) for place in places}
        return {int(match[1]): place for place, match in found.items() if match}
