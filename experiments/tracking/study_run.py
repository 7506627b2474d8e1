"""A study's run while its search goes on: the best accuracy after so many ended trials."""

import math

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from experiments.tracking import names
from experiments.tracking.store import TrackingStore

BestSoFar = tuple[int, int, float]  # (ended trials, milliseconds, best accuracy)


def read_best_so_far(store: TrackingStore, run_id: str) -> tuple[int, float]:
    """Return what a study's run says: after how many ended trials, and the best of them; 0 and nan
    at first.
    """
    latest = store.client.get_run(run_id).to_proto().data.metrics  # not their thousands of rows
    written = (names.BEST_WHOLE, names.FORMER[names.BEST_WHOLE])
    rows = (row for row in latest if row.key in written)
    last = max(rows, key=lambda row: (row.step, row.timestamp), default=None)
    return (last.step, last.value) if last else (0, math.nan)


def write_best_so_far(store: TrackingStore, run_id: str, rows: list[BestSoFar]) -> None:
    """Log the best of a study's trials."""
    metrics = [Metric(names.BEST_WHOLE, value, when, ended) for ended, when, value in rows]
    store.client.log_metrics(run_id, metrics)


def has_run(store: TrackingStore, run_id: str) -> bool:
    """Tell whether a run is there and was not deleted."""
    try:
        return bool(store.client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return False
