"""The weights that a run keeps: how large they are, and how they are removed with a note."""

from datetime import UTC, datetime

from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from experiments.tracking import names
from experiments.tracking.store import TrackingStore


def was_removed(run: Run) -> bool:
    """Tell whether a run's weights were removed, or were to be when a kill came."""
    return names.REMOVED in run.data.tags


def remove_weights(store: TrackingStore, run: Run, why: str = "", again: str = "") -> None:
    """Remove a run's weights, and note that before: why, what they were, and how to make them
    again. Without a reason, one that has its note already loses the files that a kill has left.
    """
    if why:
        tags, accuracy = run.data.tags, run.data.metrics.get(names.BEST_WHOLE)
        score = "no accuracy" if accuracy is None else f"{names.BEST_WHOLE} {accuracy:.4f}"
        when = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        note = f"{when}: {why}; {score}, sha256 {tags[names.SHA256]}"
        about = tags.get(names.DESCRIPTION, "")
        line = f"- The weights were removed ({why}). To make them again: `{again}`"
        store.tag_run(
            run.info.run_id,
            {names.REMOVED: note, names.AGAIN: again, names.DESCRIPTION: f"{about}\n{line}"},
        )
    repository = get_artifact_repository(run.info.artifact_uri, tracking_uri=store.uri)
    if repository.list_artifacts(names.MODEL_FOLDER):
        repository.delete_artifacts(names.MODEL_FOLDER)


def size_of_artifacts(store: TrackingStore, run: Run, weights_only: bool = False) -> int:
    """Return the bytes of a run's artifacts, or of its model alone."""
    repository = get_artifact_repository(run.info.artifact_uri, tracking_uri=store.uri)
    folders, size = [names.MODEL_FOLDER if weights_only else None], 0
    while folders:
        for each in repository.list_artifacts(folders.pop()):
            if each.is_dir:
                folders.append(each.path)
            else:
                size += each.file_size or 0
    return size
