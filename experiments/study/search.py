"""Open, run and resume a study: an ask-and-tell loop over numbered slots,
which any number of kills cannot upset.

`--trials N` makes sure that N numbered trials exist and are finished, however often it is run and
by however many workers. A trial whose worker died is run again under its own number; sampler and
training are seeded by address, so it draws what it drew before.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from experiments.context import TrainingContext
from experiments.outages import HOUR_S, Patience
from experiments.proposals.attributes import RUN_ID, outcome_of
from experiments.proposals.pruners import PRUNERS
from experiments.proposals.rescue import counted
from experiments.study.best_so_far import log_best_so_far
from experiments.study.claims import Claims
from experiments.study.contract import CONTRACT, IDENTITY, PARENT, contract_of, open_study
from experiments.study.locks import ALIVE, Lock, open_locks
from experiments.study.settings import SearchSettings
from experiments.study.stopping import Expectations, Limit, Limits, steps_of
from experiments.study.storage import open_storage
from experiments.study.trial import STORE_FAILURES, StudyContext
from experiments.tracked_training import explaining_failures
from experiments.tracking import names
from experiments.tracking.checkpoint_copies import copies_of
from experiments.tracking.descriptions import ENDED, SEARCHING
from experiments.tracking.pages import describe_search
from experiments.tracking.run import FencedError
from experiments.tracking.store import TrackingStore
from experiments.urls import masked
from speaker.common.errors import DeviceLostError, UserError
from speaker.common.signals import interruptible
from speaker.training.outcome import Outcome

POLL_S = 0.5
Retain = Callable[[TrackingStore, str], None]  # of a store and a study
RESUME = "run the same command to resume"


@dataclass(frozen=True)
class WorkerSpec:
    """All that a process needs to take part in a search."""

    settings: SearchSettings
    context: TrainingContext
    storage_url: str
    tracking_uri: str
    expectations: Expectations | None = None  # what patience goes by; a worker can be sent it
    retain: Retain | None = None  # what removes weights that are not to be kept; it, too
    store_patience: float = HOUR_S  # seconds that a store or disk may fail

    def open(self) -> "StudyWorker":
        """Open the stores and the study in them, or make them.

        Raises UserError for what cannot be opened.
        """
        with explaining_failures(RESUME, STORE_FAILURES):
            return StudyWorker(self)

    def open_patiently(self, say: Callable[[str], None] = tqdm.write) -> "StudyWorker":
        """Open them as one who was there already, and so wait, saying so, for those that are away.

        Raises UserError when patience is at its end, and for what waiting does not mend.
        """
        return Patience(self.store_patience, (UserError,), say).insist(self.open)

    def tags(self) -> dict[str, str]:
        """Return the tags of the study's run."""
        settings = self.settings
        tags = {
            "storage": masked(self.storage_url),
            "sampler": settings.sampler,
            "pruner": settings.pruner,
        }
        above = {names.CONFIRMS: settings.confirms, names.PARENT: settings.above}
        return tags | above if settings.confirms else tags


class StudyWorker:
    """One worker of a study."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Open the study and its parent run, or make them.

        Raises UserError for what cannot be opened, and when the study has another contract.
        """
        self.spec = spec
        self._settings = spec.settings
        self._locks = open_locks(spec.storage_url, spec.settings.name)
        self._store = TrackingStore(spec.tracking_uri)
        self._held: tuple[Lock, int] | None = None  # of the trial that runs here: its id
        self._alive: Lock | None = None  # which says that this worker is at work
        expected = partial(self._expected, spec.expectations) if spec.expectations else None
        self._limits = Limits(spec.settings, expected)
        storage = open_storage(spec.storage_url)
        with self._locks.holding("study"):
            self.study, parent = self._open(storage)
        self.shared = StudyContext(
            self.study,
            spec.settings.space,
            spec.settings.base,
            spec.settings.seed,
            spec.context,
            self._store,
            parent,
            spec.settings.prune_presets,
            self._prove,
            Patience(spec.store_patience, STORE_FAILURES),
        )
        self._claims = Claims(
            self.study, self._locks, spec.settings, self._limits, self.shared.config
        )
        self._close_ended_runs()
        self._log_best_so_far()

    def _open(self, storage: RDBStorage) -> tuple[optuna.Study, str]:
        """Open the study and its parent run, whose id is returned, too."""
        settings, context = self._settings, self.spec.context
        study = open_study(storage, settings.name, contract_of(settings, context))
        study.pruner = PRUNERS[settings.pruner](settings.base.steps)
        known = study.user_attrs
        identity, contract = known[IDENTITY], known[CONTRACT]
        parent = self._store.open_study(
            settings.name, identity, known.get(PARENT), contract, self.spec.tags(), context
        )
        study.set_user_attr(PARENT, parent)
        describe_search(self._store, parent, SEARCHING)
        return study, parent

    def use(self, context: TrainingContext) -> None:
        """Compute with this context from now on: the same data,
        on the device that they were put on.
        """
        self.spec = replace(self.spec, context=context)
        self.shared = replace(self.shared, context=context)
        tags = context.tags()
        self.patience.insist(lambda: self._store.tag_run(self.shared.parent, tags))

    @property
    def patience(self) -> Patience:
        """What this worker waits by for stores and disks that fail."""
        return self.shared.patience

    def say_by(self, say: Callable[[str], None]) -> None:
        """Let what this worker waits for be said by `say` from now on."""
        self.shared = replace(self.shared, patience=replace(self.patience, say=say))

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that have ended, however they did, and count: no others repeat them."""
        return self.patience.insist(self._finished)

    def steps(self) -> int:
        """Return the training steps of the trials that have ended."""
        return steps_of(self._settings, self.patience.insist(self._ended))

    def planned(self) -> int:
        """Return how many trials the study is to have."""
        return self._limits.planned(self.patience.insist(self._trials))

    def missing(self) -> int:
        """Return how many trials there are still to run, were none of them stopped early."""
        return self._limits.missing(self.patience.insist(self._trials))

    def ended_by(self) -> Limit:
        """Return what ended a search that was not interrupted."""
        return self._limits.ended_by(self.patience.insist(self._trials))

    def trials(self) -> Iterator[optuna.trial.Trial]:
        """Yield trials to run until a limit is reached and none is left open, or time is up.

        Each is this worker's while it runs.
        """
        with self._at_work():
            yield from self._claimed()

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Let others see for a `with` block that somebody is at work on the study."""
        if self._alive:
            yield
            return
        self._alive = self.patience.insist(lambda: self._locks.share(ALIVE))
        try:
            yield
        finally:
            self._alive.release()
            self._alive = None

    def _claimed(self) -> Iterator[optuna.trial.Trial]:
        deadline = time.monotonic() + self._settings.timeout if self._settings.timeout else None
        while deadline is None or time.monotonic() < deadline:
            claimed = self.patience.insist(self._claims.take)
            if claimed is None:
                if not self.patience.insist(self._running):
                    return
                with interruptible():
                    # Others still run theirs; should one die, its trial is taken over here.
                    time.sleep(POLL_S)
                continue
            trial, lock = claimed
            self._held = lock, trial._trial_id
            try:
                yield trial
            finally:
                lock.release()
                self._held = None
            self.patience.insist(self._log_best_so_far)
            self.patience.insist(self._remove_weights)

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Be at work on the study for a `with` block, as others can see, and end the parent run
        after it, however it ends; what ended it passes through.

        Raises UserError for a store or disk that failed.
        """
        failures = explaining_failures(RESUME, STORE_FAILURES)
        with failures, self._at_work(), self._closed():
            yield

    @contextlib.contextmanager
    def _closed(self) -> Iterator[None]:
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
            with contextlib.suppress(*STORE_FAILURES):
                self.close()
            if not isinstance(error, BrokenPipeError):  # then nobody would read this
                print(f"{self._count_finished()}{RESUME}.", file=sys.stderr)
            raise
        with explaining_failures(RESUME, STORE_FAILURES):
            self.patience.insist(lambda: self.close(as_asked=True))

    def close(self, as_asked: bool = False) -> None:
        """End the parent run: complete when the planned trials are, or the search ended `as_asked`
        and no trial is left open; else interrupted, to be opened again.
        """
        self._close_ended_runs()
        self._remove_left_checkpoints()
        self._log_best_so_far()
        complete = self._limits.is_complete(self._trials())
        complete = complete or (as_asked and not self._running())
        self._store.close_study(
            self.shared.parent, Outcome.COMPLETE if complete else Outcome.INTERRUPTED
        )
        if as_asked:
            self._remove_weights()
        if complete:
            describe_search(self._store, self.shared.parent, ENDED)

    def _prove(self) -> bool:
        """Make sure that the trial which runs here is this worker's; tell whether its lock was lost
        for a while.

        Raises FencedError where another worker has it, or has ended it.
        """
        if self._alive:
            self._alive.prove()
        if not self._held or not self._held[0].prove():
            return False
        state = self.study._storage.get_trial(self._held[1]).state
        if state.is_finished():
            raise FencedError("another worker has ended it")
        return True

    def _count_finished(self) -> str:
        """Return how many trials have finished, if the store tells."""
        try:
            count = len(self._finished())
        except STORE_FAILURES:
            return ""
        return f"{count} trial{'s' * (count != 1)} finished; "

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _finished(self) -> list[FrozenTrial]:
        return [trial for trial in counted(self._trials()) if trial.state.is_finished()]

    def _ended(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.state.is_finished()]

    def _running(self) -> bool:
        return any(trial.state == TrialState.RUNNING for trial in self._trials())

    def _expected(self, expectations: Expectations) -> Mapping[int, float]:
        """Return what to expect of the complete trials; one that has just ended counts."""
        self._close_ended_runs()
        return expectations(self._store, self._settings.name)

    def _close_ended_runs(self) -> None:
        """Close the runs of trials whose worker died after it told the study
        and before it closed the run.
        """
        ended = {trial.user_attrs.get(RUN_ID): trial for trial in self._ended()}
        for run in self._store.left_open(self._settings.name):
            if trial := ended.get(run.run_id):
                if copies := copies_of(run):
                    copies.remove()
                run.close(outcome_of(trial), trial.user_attrs.get("reason", ""))

    def _remove_left_checkpoints(self) -> None:
        """Remove the checkpoints of trials that have ended: a kill may have come before that."""
        context = self.shared.context
        left = {path.stem for path in context.checkpoints.glob("*.checkpoint")}
        for trial in self._ended():
            if (run_id := trial.user_attrs.get(RUN_ID)) in left:
                context.checkpoint(run_id, self._settings.base).remove()

    def _remove_weights(self) -> None:
        if retain := self.spec.retain:
            with self._locks.holding("weights"):
                retain(self._store, self._settings.name)

    def _log_best_so_far(self) -> None:
        with self._locks.holding("best"):
            log_best_so_far(self._store, self.shared.parent, self._ended(), time.time)
