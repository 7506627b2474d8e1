"""Runs that an older version wrote look like present ones, however they are read."""

from pathlib import Path

import mlflow
import pytest

from experiments.analysis.leaderboard import ranked
from experiments.context import TrainingContext
from experiments.tracking import names
from experiments.tracking.names import FORMER, PRESENT
from experiments.tracking.store import TrackingStore
from speaker.training import metrics
from speaker.training.metrics import OBJECTIVE


@pytest.fixture
def store(state: Path) -> TrackingStore:
    return TrackingStore(f"sqlite:///{state}/mlflow.db", clock=iter(range(9_000)).__next__)


def old_run(store: TrackingStore, number: int, whole: float) -> str:
    """Leave a run as an older version did."""
    run = store.open_run(f"#{number} old", {names.STUDY: "s", names.TRIAL: str(number)})
    plain = mlflow.MlflowClient(store.uri)
    for step in (4, 8):
        plain.log_metric(run.run_id, "valid/accuracy_whole", whole * step / 8, step=step)
    for key, value in (("best/accuracy_whole", whole), ("best/accuracy_crops", whole / 2),
                       ("speed/seconds", 3.0), ("model/parameters", 7.0)):  # fmt: skip
        plain.log_metric(run.run_id, key, value)
    run.close("complete")
    return run.run_id


def test_every_present_name_differs_from_every_former_one() -> None:
    assert len(PRESENT) == len(FORMER)
    assert not FORMER.keys() & PRESENT.keys()
    constants = {value for value in vars(metrics).values() if isinstance(value, str)}
    assert {name for name in FORMER if "/" in name} <= constants | {
        names.BEST_WHOLE, names.BEST_CROPS, names.SECONDS, names.PARAMETERS,
    }  # fmt: skip


def test_old_trials_are_ranked_with_present_ones(
    store: TrackingStore, context: TrainingContext
) -> None:
    store.open_study("s", "id", None, {}, {}, context)
    old_run(store, 0, 0.5)
    run = store.open_run("#1 new", {names.STUDY: "s", names.TRIAL: "1"})
    run.log(4, {OBJECTIVE: 0.75})
    store.client.log_metric(run.run_id, names.BEST_WHOLE, 0.75)
    run.close("complete")
    first, second = ranked(store, "s")
    assert (first.trial, first.whole) == ("1", 0.75)
    assert (second.whole, second.crops, second.seconds, second.parameters) == (0.5, 0.25, 3.0, 7)
    assert second.curve == ((4.0, 0.25), (8.0, 0.5))


def test_a_run_that_was_resumed_has_one_curve(store: TrackingStore) -> None:
    run_id = old_run(store, 0, 0.5)
    run = store.open_run("#0 old", {}, run_id=run_id)
    for step in (4, 8, 12):
        run.log(step, {OBJECTIVE: step / 10})
    again = TrackingStore(store.uri)
    assert again.client.get_run(run_id).data.metrics[OBJECTIVE] == 1.2
    assert again.curves([again.client.get_run(run_id)])[run_id] == [(4, 0.25), (8, 0.5), (12, 1.2)]


def test_an_old_models_accuracies_are_found(store: TrackingStore) -> None:
    client = store.client
    client.create_registered_model("m")
    client.create_model_version("m", "file:///x", tags={"best/accuracy_whole": "0.5"})
    client.set_registered_model_alias("m", "a", "1")
    found = [client.get_model_version("m", "1"), client.get_model_version_by_alias("m", "a"),
             *client.search_model_versions("name = 'm'")]  # fmt: skip
    assert [version.tags for version in found] == [{names.BEST_WHOLE: "0.5"}] * 3
