"""Two places with stores of their own: one with a study, and one to take it to."""

from dataclasses import replace
from pathlib import Path

import optuna
from tqdm import tqdm

from experiments.analysis.leaderboard import Row, ranked
from experiments.context import TrainingContext
from experiments.proposals.space import HOMEWORK
from experiments.study.search import StudyWorker, WorkerSpec
from experiments.study.settings import SearchSettings
from experiments.study.storage import open_storage
from experiments.study.trial import run_trial
from experiments.tracking.store import TrackingStore
from experiments.transfer.incoming import Here, Taken, take
from tests.helpers import PLAN

WHEN = "2026-11-28 04:00:00 UTC"
NARROW = HOMEWORK.narrowed({}, {"d_model": (80,), "num_layers": (1,), "nhead": (1, 2, 4)})
SETTINGS: SearchSettings = replace(PLAN, space=NARROW, trials=3, presets=())


def storage_in(state: Path) -> str:
    return f"sqlite:///{state}/optuna.db"


def store_in(state: Path) -> TrackingStore:
    return TrackingStore(f"sqlite:///{state}/mlflow.db")


def worker_in(
    state: Path, context: TrainingContext, settings: SearchSettings = SETTINGS
) -> StudyWorker:
    """Open the study as a search does."""
    return WorkerSpec(settings, context, storage_in(state), f"sqlite:///{state}/mlflow.db").open()


def search_in(
    state: Path, context: TrainingContext, settings: SearchSettings = SETTINGS
) -> StudyWorker:
    """Run what is missing of the study, to its end."""
    worker = worker_in(state, context, settings)
    for trial in worker.trials():
        run_trial(worker.shared, trial, tqdm(disable=True))
    worker.close()
    return worker


def take_to(state: Path, file: Path, name: str | None = None) -> Taken:
    return take(file, name, lambda: Here(store_in(state), storage_in(state), WHEN))


def rows_in(state: Path, study: str = "s") -> list[Row]:
    """Return the study's ranks, without what a place names in its own way."""
    return [replace(row, run_id="", tags={}) for row in ranked(store_in(state), study)]


def trials_in(state: Path, study: str = "s") -> list[tuple[object, ...]]:
    """Return all that Optuna says of the trials, but what a place names in its own way."""
    storage = open_storage(storage_in(state))
    trials = optuna.load_study(study_name=study, storage=storage).get_trials()
    storage.engine.dispose()
    return [
        (each.number, each.state, each.value, each.params, each.distributions, each.system_attrs,
         each.intermediate_values, each.datetime_start, each.datetime_complete,
         {key: value for key, value in each.user_attrs.items() if key != "mlflow.run_id"})
        for each in trials
    ]  # fmt: skip
