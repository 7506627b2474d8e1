"""Many runs read at once: the values that a metric had in each, in few requests.

MLflow's client asks for one run at a time, which takes seconds for a long study. Its database store
and its server can be asked for many, as its own UI does, but no public call of the client reaches
that: where it is not there, as in another version, or fails, runs are asked for one by one.
"""

import contextlib
import gc
from collections.abc import Iterator, Sequence

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.utils.rest_utils import http_request_safe

from experiments.tracking.names import FORMER

MAX_RUNS = 100  # of a request: a server takes no more
MAX_VALUES = 25_000  # of an answer: a server gives no more
ROUTE = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"

History = list[tuple[int, float]]


def read_histories(
    client: mlflow.MlflowClient, run_ids: Sequence[str], key: str
) -> dict[str, History]:
    """Return the (step, value) pairs of a metric, in order, of each of some runs."""
    found: dict[str, History] = {}
    for first in range(0, len(run_ids), MAX_RUNS):
        part = run_ids[first : first + MAX_RUNS]
        found |= _read_both_names(client, part, key) or {
            run_id: _pairs(client.get_metric_history(run_id, key)) for run_id in part
        }
    return found


def _read_both_names(
    client: mlflow.MlflowClient, run_ids: Sequence[str], key: str
) -> dict[str, History] | None:
    """Return histories under a metric's present and its former name; None where that cannot be."""
    present = _read_many(client, run_ids, key)
    if present is None or key not in FORMER:
        return present
    former = _read_many(client, run_ids, FORMER[key])
    return former and {run_id: sorted(former[run_id] + present[run_id]) for run_id in run_ids}


def _read_many(
    client: mlflow.MlflowClient, run_ids: Sequence[str], key: str
) -> dict[str, History] | None:
    """Return histories by one request; None where that cannot be done."""
    store = client._tracking_client.store
    found: dict[str, History] = {run_id: [] for run_id in run_ids}
    try:
        if hasattr(store, "get_metric_history_bulk"):
            for row in store.get_metric_history_bulk(run_ids, key, MAX_VALUES):
                found[row.run_id].append((row.step, row.value))
        else:
            query = {"run_id": list(run_ids), "metric_key": key, "max_results": MAX_VALUES}
            answer = http_request_safe(store.get_host_creds(), ROUTE, "GET", params=query)
            for value in answer.json()["metrics"]:
                found[value["run_id"]].append((int(value["step"]), float(value["value"])))
    except (MlflowException, KeyError, TypeError, ValueError):
        return None
    if sum(map(len, found.values())) >= MAX_VALUES:  # some may be missing
        return None
    return {run_id: sorted(pairs) for run_id, pairs in found.items()}


def _pairs(rows: Sequence[Metric]) -> History:
    return sorted((row.step, row.value) for row in rows)


@contextlib.contextmanager
def no_collecting() -> Iterator[None]:
    """Put Python's search for garbage off: while runs become objects, tens of each, it takes half
    of the time and finds none.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
