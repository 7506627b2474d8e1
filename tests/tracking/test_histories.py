"""Histories of many runs are read at once, from a database and from a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Metric

from experiments.tracking import histories
from experiments.tracking.histories import MAX_RUNS, read_histories
from experiments.tracking.store import TrackingStore
from speaker.training.metrics import OBJECTIVE
from tests.servers import free_port, serve, stop

pytestmark = pytest.mark.slow

RUNS = MAX_RUNS + 3  # more than one request takes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, TrackingStore]]:
    home = tmp_path_factory.mktemp("served")
    port = free_port()
    server = serve(home, port)
    try:
        yield home, TrackingStore(f"http://127.0.0.1:{port}")
    finally:
        stop(server)


def test_a_server_gives_what_its_database_holds(
    served: tuple[Path, TrackingStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, store = served
    expected = {}
    direct = TrackingStore(f"sqlite:///{home}/server.db")
    for number in range(RUNS):
        run = direct.open_run(f"#{number}", {})
        steps = range(number % 3)
        rows = [Metric(OBJECTIVE, number + step / 8, 5 - step, step) for step in steps]
        direct.client.log_batch(run.run_id, metrics=rows)
        expected[run.run_id] = [(step, number + step / 8) for step in steps]
    ids = list(expected)
    assert read_histories(direct.client, ids, OBJECTIVE) == expected
    assert histories._read_many(store.client, ids[:MAX_RUNS], OBJECTIVE) is not None
    assert read_histories(store.client, ids, OBJECTIVE) == expected
    few = ids[:5]
    # A server that does not know the route, and an answer that may be cut off.
    monkeypatch.setattr(histories, "ROUTE", "/ajax-api/2.0/mlflow/metrics/nowhere")
    assert histories._read_many(store.client, few, OBJECTIVE) is None
    assert read_histories(store.client, few, OBJECTIVE) == {each: expected[each] for each in few}
    monkeypatch.setattr(histories, "MAX_VALUES", 2)
    assert histories._read_many(direct.client, few, OBJECTIVE) is None
    assert read_histories(direct.client, few, OBJECTIVE) == {each: expected[each] for each in few}
