import math
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from experiments.context import TrainingContext
from experiments.proposals.attributes import RUN_ID
from experiments.study.best_so_far import after_each, log_best_so_far
from experiments.study.locks import open_locks
from experiments.study.storage import open_storage
from experiments.tracking.names import BEST_WHOLE, STUDY, TRIAL
from experiments.tracking.store import TrackingStore
from experiments.tracking.study_run import read_best_so_far

BEGIN = datetime(2026, 11, 1)
Ended = tuple[TrialState, float | None]


class Books:
    """A study in both stores, to which ended trials are added."""

    def __init__(self, folder: Path, context: TrainingContext) -> None:
        self.folder = folder
        self.store = TrackingStore(f"sqlite:///{folder}/mlflow.db")
        storage = open_storage(f"sqlite:///{folder}/optuna.db")
        self.study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
        self.parent = self.store.open_study("s", "id", None, {}, {}, context)

    def end(self, value: float | None, state: TrialState = TrialState.COMPLETE) -> str:
        """Add a trial that ended a second after the one before; return its run's id."""
        number = len(self.study.trials)
        run = self.store.open_run(f"#{number}", {STUDY: "s", TRIAL: str(number)}, self.parent)
        run.close("complete")
        self.study.add_trial(ended(number, value, state, run.run_id))
        return run.run_id

    def log(self) -> None:
        log_best_so_far(
            self.store,
            self.parent,
            self.study.trials,
            lambda: (BEGIN + timedelta(days=1)).timestamp(),
        )

    def rows(self) -> list[tuple[int, float]]:
        rows = self.store.client.get_metric_history(self.parent, BEST_WHOLE)
        return [(row.step, row.value) for row in rows]

    def last(self) -> float:
        """Return what the UI's table shows."""
        return float(self.store.client.get_run(self.parent).data.metrics[BEST_WHOLE])


def ended(
    number: int, value: float | None, state: TrialState = TrialState.COMPLETE, run: str = ""
) -> FrozenTrial:
    trial = create_trial(
        value=value if state == TrialState.COMPLETE else None,
        state=state,
        user_attrs={RUN_ID: run} if run else {},
    )
    trial.number = number
    trial.datetime_complete = BEGIN + timedelta(seconds=number)
    return trial


@pytest.fixture
def books(state: Path, context: TrainingContext) -> Books:
    return Books(state, context)


def test_each_ended_trial_adds_one_value(books: Books) -> None:
    books.log()
    assert books.rows() == []
    books.end(None, TrialState.FAIL)
    books.log()
    assert books.rows() == [], "there is no best yet"
    for value in (0.2, 0.5, 0.3):
        books.end(value)
        books.log()
        books.log()
    assert books.rows() == [(2, 0.2), (3, 0.5), (4, 0.5)]


def test_what_a_kill_left_out_is_made_good(books: Books) -> None:
    for value in (0.2, 0.1, 0.4):
        books.end(value)
    books.log()
    books.end(None, TrialState.PRUNED)
    books.log()
    assert books.rows() == [(1, 0.2), (2, 0.2), (3, 0.4), (4, 0.4)]


def test_who_knows_of_fewer_trials_writes_nothing(books: Books) -> None:
    for value in (0.2, 0.1, 0.4):
        books.end(value)
    books.log()
    log_best_so_far(books.store, books.parent, books.study.trials[:2], lambda: 0.0)
    assert books.rows() == [(1, 0.2), (2, 0.2), (3, 0.4)]


@pytest.mark.parametrize("more", [(), (0.3,)], ids=["nothing new", "another trial"])
def test_a_deleted_best_is_forgotten(books: Books, more: tuple[float, ...]) -> None:
    books.end(0.2)
    best = books.end(0.9)
    books.end(0.1)
    books.log()
    assert books.last() == 0.9
    books.store.client.delete_run(best)
    for value in more:
        books.end(value)
    books.log()
    books.log()
    assert books.last() == (more or (0.2,))[-1]
    assert len(books.rows()) == 4
    books.store.client.restore_run(best)
    books.log()
    assert books.last() == 0.9


def test_with_all_runs_deleted_there_is_no_best(books: Books) -> None:
    books.store.client.delete_run(books.end(0.2))
    books.log()
    assert books.rows() == []
    only = books.end(0.3)
    books.log()
    books.store.client.delete_run(only)
    books.log()
    books.log()
    assert math.isnan(books.last())
    assert len(books.rows()) == 2


def test_only_what_would_be_the_best_is_looked_up() -> None:
    asked: list[str] = []

    def is_kept(run_id: str) -> bool:
        asked.append(run_id)
        return True

    values = (0.5, 0.1, 0.7, 0.6, 0.2)
    trials = [ended(number, value, run=str(number)) for number, value in enumerate(values)]
    rows, best = after_each(trials[::-1], is_kept, 3)
    assert [(count, value) for count, _, value in rows] == [(4, 0.7), (5, 0.7)]
    assert (best, asked) == (0.7, ["2"])


@pytest.mark.slow
def test_two_processes_write_each_value_once(books: Books) -> None:
    for number in range(20):
        books.end(number / 20)
    with get_context("spawn").Pool(2) as pool:
        pool.map(partial(_log_some, books.folder, books.parent), range(1, 21), chunksize=1)
    assert books.rows() == [(count, (count - 1) / 20) for count in range(1, 21)]


def _log_some(folder: Path, parent: str, count: int) -> None:
    """Log as a worker does that sees the first `count` of the trials."""
    url = f"sqlite:///{folder}/optuna.db"
    store = TrackingStore(f"sqlite:///{folder}/mlflow.db")
    trials = optuna.load_study(study_name="s", storage=open_storage(url)).trials[:count]
    with open_locks(url, "s").holding("best"):
        log_best_so_far(store, parent, trials, lambda: 0.0)


def test_the_order_is_that_of_the_ends() -> None:
    late, early = ended(0, 0.9), ended(1, 0.4)
    late.datetime_complete = BEGIN + timedelta(hours=1)
    kept: Callable[[str], bool] = lambda _run: True  # noqa: E731
    rows, _ = after_each([late, early], kept, 0)
    assert [value for _, _, value in rows] == [0.4, 0.9]


def test_of_more_trials_than_mlflow_takes_at_once(books: Books) -> None:
    trials = [ended(number, float(number)) for number in range(1_001)]
    log_best_so_far(books.store, books.parent, trials, BEGIN.timestamp)
    assert read_best_so_far(books.store, books.parent) == (1_001, 1_000.0)
    assert len(books.rows()) == 1_001
