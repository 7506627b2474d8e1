"""Open, run and resume a study: an ask-and-tell loop over numbered slots,
which any number of kills cannot upset.

`--trials N` makes sure that N numbered trials exist and are finished, however often it is run and
by however many workers. A worker holds a trial's lock while it runs it; a running trial whose lock
can be taken lost its worker, and is run again under its own number. Sampler and training are seeded
by address, so it draws what it drew before.
"""

import contextlib
import os
import shlex
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from experiments.context import TrainingContext
from experiments.proposals.attributes import (
    INDEX,
    OVERRIDES,
    PRESET,
    REPLICATE,
    RESCUE_OF,
    RUN_ID,
    STEPS,
    outcome_of,
)
from experiments.proposals.finalists import still_to_train
from experiments.proposals.presets import Preset
from experiments.proposals.pruners import PRUNERS
from experiments.proposals.rescue import changes_of, next_to_rescue, split_changes
from experiments.proposals.samplers import make_sampler
from experiments.proposals.space import Space
from experiments.study.best_so_far import log_best_so_far
from experiments.study.locks import Locks, Release, open_locks
from experiments.study.stopping import Expectations, Limit, has_stalled
from experiments.study.trial import STORE_FAILURES, StudyContext
from experiments.tracked_training import explaining_failures
from experiments.tracking import names
from experiments.tracking.descriptions import ENDED, SEARCHING
from experiments.tracking.pages import describe_search
from experiments.tracking.store import TrackingStore
from experiments.urls import masked
from speaker.common.errors import DeviceLostError, UserError, describe_differences, first_line
from speaker.common.files import create_once
from speaker.common.seeding import derive_seed
from speaker.common.signals import interruptible
from speaker.config import TrialConfig
from speaker.training.metrics import OBJECTIVE
from speaker.training.outcome import Outcome

CONTRACT, IDENTITY, PARENT = "contract", "id", "mlflow.run_id"  # attributes of an Optuna study
BUSY_TIMEOUT_S = 60
POLL_S = 0.5
Retain = Callable[[TrackingStore, str], None]  # of a store and a study
UPGRADE = "optuna storage upgrade"  # Optuna names it where a database is of an older release
RESUME = "run the same command to resume"


@dataclass(frozen=True)
class SearchSettings:
    """What the user asked of a search."""

    name: str
    space: Space
    base: TrialConfig
    seed: int
    sampler: str
    pruner: str
    trials: int
    timeout: float | None  # seconds
    presets: tuple[Preset, ...] = ()  # points that the study begins with
    preset: str = ""  # their name, where they are all that is asked for
    prune_presets: bool = False  # whether these may be stopped early, too
    is_race: bool = False  # whether presets that are behind on some seeds are left out of others
    confirms: str = ""  # the study whose best points these are
    above: str = ""  # that study's run
    patience: int | None = None  # trials in a row without a better answer
    budget: int | None = None  # training steps of the whole study
    rescue: bool = False  # whether a point that collapsed is tried once more: see rescue.py


@dataclass(frozen=True)
class WorkerSpec:
    """All that a process needs to take part in a search."""

    settings: SearchSettings
    context: TrainingContext
    storage_url: str
    tracking_uri: str
    expectations: Expectations | None = None  # what patience goes by; a worker can be sent it
    retain: Retain | None = None  # what removes weights that are not to be kept; it, too

    def open(self) -> "StudyWorker":
        """Open the stores and the study in them, or make them.

        Raises UserError for what cannot be opened.
        """
        settings, url = self.settings, self.storage_url
        locks = open_locks(url, settings.name)
        tags = {"storage": masked(url), "sampler": settings.sampler, "pruner": settings.pruner}
        if settings.confirms:
            tags |= {names.CONFIRMS: settings.confirms, names.PARENT: settings.above}
        store = TrackingStore(self.tracking_uri)
        storage, context = open_storage(url), self.context
        return StudyWorker(
            settings, storage, locks, context, store, tags, self.expectations, self.retain
        )


class StudyWorker:
    """One worker of a study."""

    def __init__(
        self,
        settings: SearchSettings,
        storage: RDBStorage,
        locks: Locks,
        context: TrainingContext,
        store: TrackingStore,
        tags: dict[str, str],
        expectations: Expectations | None = None,
        retain: Retain | None = None,
    ) -> None:
        """Open the study and its parent run, or make them.

        Raises UserError when the study has another contract.
        """
        self._settings = settings
        self._locks = locks
        self._store = store
        self._expectations = expectations
        self._retain = retain
        self._judged = (0, False)  # how many trials had ended, and whether they had stalled
        contract = _contract(settings, context)
        with locks.holding("study"):
            self.study = _open_study(storage, settings.name, contract)
            self.study.pruner = PRUNERS[settings.pruner](settings.base.steps)
            known = self.study.user_attrs
            parent = store.open_study(
                settings.name, known[IDENTITY], known.get(PARENT), known[CONTRACT], tags, context
            )
            self.study.set_user_attr(PARENT, parent)
            describe_search(store, parent, SEARCHING)
        self.shared = StudyContext(
            self.study,
            settings.space,
            settings.base,
            settings.seed,
            context,
            store,
            parent,
            settings.prune_presets,
        )
        self._close_ended_runs()
        self._log_best_so_far()

    def use(self, context: TrainingContext) -> None:
        """Compute with this context from now on: the same data,
        on the device that they were put on.
        """
        self.shared = replace(self.shared, context=context)
        self._store.tag_run(self.shared.parent, context.tags())

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that have ended, however they did."""
        return [
            trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()
        ]

    def steps(self) -> int:
        """Return the training steps of the trials that have ended."""
        return self._steps(self.finished())

    def planned(self) -> int:
        """Return how many trials the study is to have: in a race, those that there are and those of
        points that may still win.
        """
        trials = self.study.get_trials(deepcopy=False)
        if self._settings.is_race:
            return len(trials) + len(self._presets_left(trials))
        return self._settings.trials

    def missing(self) -> int:
        """Return how many trials there are still to run, were none of them stopped early: those
        that were left open, and the new ones that the limits allow.
        """
        trials = self.study.get_trials(deepcopy=False)
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        if self._limit(trials):
            return running
        ended = [trial for trial in trials if trial.state.is_finished()]
        missing = self.planned() - len(ended)
        if self._settings.budget is not None:
            left = self._settings.budget - self._steps(ended)
            missing = min(missing, max(running, -(-left // self._settings.base.steps)))
        return missing

    def ended_by(self) -> Limit:
        """Return what ended a search that was not interrupted."""
        trials = self.study.get_trials(deepcopy=False)
        if sum(trial.state.is_finished() for trial in trials) >= self.planned():
            return Limit.TRIALS
        limit = self._limit(trials)
        return limit if limit in (Limit.BUDGET, Limit.PATIENCE) else Limit.TIMEOUT

    def trials(self) -> Iterator[optuna.trial.Trial]:
        """Yield trials to run until a limit is reached and none is left open, or time is up.

        Each is this worker's while it runs.
        """
        deadline = time.monotonic() + self._settings.timeout if self._settings.timeout else None
        while deadline is None or time.monotonic() < deadline:
            claimed = self._claim()
            if claimed is None:
                if not self._running():
                    return
                with interruptible():
                    # Others still run theirs; should one die, its trial is taken over here.
                    time.sleep(POLL_S)
                continue
            trial, release = claimed
            try:
                yield trial
            finally:
                release()
            self._log_best_so_far()
            self._remove_weights()

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """End the parent run after a `with` block, however that ends; what ended it passes through.

        Raises UserError for a store or disk that failed.
        """
        try:
            with explaining_failures(RESUME, STORE_FAILURES):
                yield
        except UserError as error:
            with contextlib.suppress(*STORE_FAILURES):
                self.close()
            if isinstance(error, DeviceLostError):
                raise DeviceLostError(f"{error}; {RESUME}") from error
            raise
        except BaseException as error:
            self.close()
            if not isinstance(error, BrokenPipeError):  # then nobody would read this
                print(f"{len(self.finished())} trials finished; {RESUME}.", file=sys.stderr)
            raise
        self.close(as_asked=True)

    def close(self, as_asked: bool = False) -> None:
        """End the parent run: complete when the planned trials are, or the search ended `as_asked`
        and no trial is left open; else interrupted, to be opened again.
        """
        self._close_ended_runs()
        self._log_best_so_far()
        complete = len(self.finished()) >= self.planned()
        complete = complete or (as_asked and not self._running())
        self._store.close_study(
            self.shared.parent, Outcome.COMPLETE if complete else Outcome.INTERRUPTED
        )
        if as_asked:
            self._remove_weights()
        if complete:
            describe_search(self._store, self.shared.parent, ENDED)

    def _claim(self) -> tuple[optuna.trial.Trial, Release] | None:
        """Take the next trial: one whose worker died, or else a new one, unless a limit is reached.

        Limits are looked at under the study's lock: no two workers start a trial for the same rest
        of a budget.
        """
        with self._locks.holding("study"):
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING and (
                    release := self._locks.try_take(_lock_name(trial.number))
                ):
                    if (
                        self.study.get_trials(deepcopy=False)[trial.number].state
                        == TrialState.RUNNING
                    ):
                        self._seed_sampler(trial.number)
                        return optuna.trial.Trial(self.study, trial._trial_id), release
                    release()  # it ended between our reading and our taking
            if self._limit(trials):
                return None
            waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
            if not waiting:
                self._enqueue(trials)
            self._seed_sampler(waiting[0] if waiting else len(trials))
            new = self.study.ask()
            # Here, where no other worker proposes at the same time: no point is tried twice.
            self._settings.space.sample(new, self._settings.base)
            return new, self._locks.take(_lock_name(new.number))

    def _limit(self, trials: list[FrozenTrial]) -> Limit | None:
        """Return what keeps a study of these trials from a new one. It follows from those that
        have ended, so it is the same for each worker, and after each resumption.
        """
        settings = self._settings
        ended = [trial for trial in trials if trial.state.is_finished()]
        if len(_begun(trials)) >= self.planned():
            return Limit.TRIALS
        if settings.budget is not None and self._steps(ended) >= settings.budget:
            return Limit.BUDGET
        return Limit.PATIENCE if self._has_stalled([trial.number for trial in ended]) else None

    def _has_stalled(self, ended: list[int]) -> bool:
        """Tell whether patience is at its end: once for each trial that ends, since the model of
        the learning curves takes a second.
        """
        patience = self._settings.patience
        if patience is None or self._expectations is None or len(ended) <= patience:
            return False
        if self._judged[0] != len(ended):
            self._close_ended_runs()  # one that has just ended counts
            expected = self._expectations(self._store, self._settings.name)
            self._judged = len(ended), has_stalled(ended, expected, patience)
        return self._judged[1]

    def _steps(self, ended: list[FrozenTrial]) -> int:
        whole = self._settings.base.steps
        return sum(
            whole
            if trial.state == TrialState.COMPLETE
            else trial.user_attrs.get(STEPS, trial.last_step or 0)
            for trial in ended
        )

    def _running(self) -> bool:
        trials = self.study.get_trials(deepcopy=False)
        return any(trial.state == TrialState.RUNNING for trial in trials)

    def _enqueue(self, trials: list[FrozenTrial]) -> None:
        """Say what the next trial is to be, where that is not the sampler's to choose:
        one of the presets, and after these a rescue.
        """
        if left := self._presets_left(trials):
            preset = left[0]
            index = self._settings.presets.index(preset)
            about: dict[str, Any] = {PRESET: preset.name, REPLICATE: preset.replicate, INDEX: index}
            self.study.enqueue_trial(preset.values, user_attrs=about)
        elif self._settings.rescue and (parent := next_to_rescue(trials)):
            changes = changes_of(self.shared.config(parent))
            inside, outside = split_changes(self._settings.space, changes)
            about = {RESCUE_OF: parent.number, OVERRIDES: outside}
            self.study.enqueue_trial({**parent.params, **inside}, user_attrs=about)

    def _presets_left(self, trials: list[FrozenTrial]) -> Sequence[Preset]:
        """Return the points given to the study that no trial has begun, the next one first."""
        presets = self._settings.presets
        if self._settings.is_race:
            return still_to_train(presets, trials)
        return presets[len(trials) :]

    def _seed_sampler(self, number: int) -> None:
        seed = derive_seed(self._settings.seed, number, "sampler")
        self.study.sampler = make_sampler(self._settings.sampler, self._settings.space, seed)

    def _close_ended_runs(self) -> None:
        """Close the runs of trials whose worker died after it told the study
        and before it closed the run.
        """
        ended = {trial.user_attrs.get(RUN_ID): trial for trial in self.finished()}
        for run in self._store.left_open(self._settings.name):
            if trial := ended.get(run.run_id):
                run.close(outcome_of(trial), trial.user_attrs.get("reason", ""))

    def _remove_weights(self) -> None:
        if self._retain:
            with self._locks.holding("weights"):
                self._retain(self._store, self._settings.name)

    def _log_best_so_far(self) -> None:
        with self._locks.holding("best"):
            log_best_so_far(self._store, self.shared.parent, self.finished(), time.time)


def open_storage(url: str) -> RDBStorage:
    """Open a study storage, making an SQLite file or a PostgreSQL database's tables once,
    however many ask.

    Raises UserError when it cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        address = sqlalchemy.make_url(url)
        if address.get_backend_name() != "sqlite":
            with open_locks(url, "storage").holding("tables"):
                return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        path = Path(address.database or "").resolve()
        create_once(path, lambda partial: RDBStorage(f"sqlite:///{partial}").engine.dispose())
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_S}})
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError) as error:
        if UPGRADE in str(error):
            raise UserError(
                f"the study storage {masked(url)} is of an older Optuna than {version('optuna')}; "
                f"copy it, and bring it up to date: {UPGRADE} --storage {shlex.quote(masked(url))}"
            ) from error
        reason = first_line(error.__cause__ or error)
        raise UserError(
            f"the study storage {masked(url)} cannot be opened ({reason}); check --storage"
        ) from error
    _begin_immediately(storage.engine)
    return storage


def default_storage(state: Path) -> str:
    """Return the usual environment variable's storage, or else the database in the state folder."""
    return os.environ.get("OPTUNA_STORAGE") or f"sqlite:///{state.resolve() / 'optuna.db'}"


def _begin_immediately(engine: sqlalchemy.Engine) -> None:
    """Make every transaction take the write lock at its start: one that reads, then writes,
    cannot wait for it.
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def _leave_begin_to_us(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def _begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections opened before this do not know it


def _contract(settings: SearchSettings, context: TrainingContext) -> dict[str, str]:
    """Return what must not change while a study grows, by name, in words."""
    base = settings.base.identity()
    varied = settings.space.definition()
    return {
        "objective": OBJECTIVE,
        "direction": "maximize",
        "corpus": context.pack.digest,
        "space": settings.space.name,
        **{f"space.{name}": words for name, words in varied.items()},
        **{
            name: str(value)
            for name, value in base.items()
            if name not in varied and name != "seed"
        },
        **{f"protocol.{name}": str(value) for name, value in vars(context.protocol).items()},
        **({"preset": settings.preset} if settings.preset else {}),
        **({"rescue": "on"} if settings.rescue else {}),
        "seed": str(settings.seed),
        "version.torch": version("torch"),
        "version.optuna": version("optuna"),
    }


def _open_study(storage: RDBStorage, name: str, contract: dict[str, str]) -> optuna.Study:
    """Open a study, or make it; its contract must be this one."""
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )
    written = study.user_attrs.get(CONTRACT)
    if written is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, uuid.uuid4().hex)
        study.set_user_attr(CONTRACT, contract)
        name_objective(study)
        return study
    if written is None:
        raise UserError(
            f"study {name!r} holds trials of another program; choose another --study, such as "
            f"{name}-2"
        )
    if changes := describe_differences(_renamed(written), contract):
        raise UserError(
            f"study {name!r} is of another kind: {changes}; choose another --study, such as "
            f"{name}-2"
        )
    name_objective(study)
    return study


def name_objective(study: optuna.Study) -> None:
    """Say what Optuna's dashboard is to call the objective, unless that is said already."""
    if study.metric_names != [OBJECTIVE]:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            study.set_metric_names([OBJECTIVE])


def _renamed(contract: dict[str, str]) -> dict[str, str]:
    """Return a contract, of an older version perhaps, with the objective's present name."""
    objective = contract.get("objective", "")
    return {**contract, "objective": names.PRESENT.get(objective, objective)}


def _begun(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state != TrialState.WAITING]


def _lock_name(number: int) -> str:
    return f"trial-{number}"
