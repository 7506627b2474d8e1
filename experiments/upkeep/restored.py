"""What was deleted in MLflow's UI is brought back, as long as it was not removed for good."""

from collections.abc import Sequence

from mlflow.entities import Run, ViewType

from experiments.tracking import names
from experiments.tracking.client import Client
from experiments.tracking.store import TrackingStore


def restore_experiment(uri: str) -> bool:
    """Bring back the experiment of all runs, with these; tell whether it was deleted."""
    client = Client(uri)
    found = client.get_experiment_by_name(names.EXPERIMENT)
    if found is None or found.lifecycle_stage == "active":
        return False
    client.restore_experiment(found.experiment_id)
    return True


def restore_study(store: TrackingStore, study: str) -> int:
    """Bring back the deleted runs of a study, and return how many.

    The run of a trial that has another one by now, because it started over, stays deleted.
    """
    there = {_place(run) for run in store.runs(f"tags.{names.STUDY} = '{study}'")}
    deleted = [run for run in deleted_runs(store) if run.data.tags.get(names.STUDY) == study]
    count = 0
    for run in reversed(deleted):  # the last one first
        if _place(run) not in there:
            there.add(_place(run))
            store.client.restore_run(run.info.run_id)
            count += 1
    return count


def deleted_runs(store: TrackingStore) -> Sequence[Run]:
    """Return the runs that were deleted and can be brought back, oldest first."""
    return store.runs("", ViewType.DELETED_ONLY)


def _place(run: Run) -> tuple[str | None, str | None]:
    """Return what a study has one run of."""
    return run.data.tags.get(names.KIND), run.data.tags.get(names.TRIAL)
