"""What both stores say, read once: the ground of all checks."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import optuna
from mlflow.entities import Run, ViewType
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from experiments.proposals.attributes import RUN_ID
from experiments.study.contract import CONTRACT, IDENTITY, PARENT
from experiments.study.locks import ALIVE, open_locks
from experiments.study.storage import open_storage
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from experiments.upkeep.doctor.findings import Finding
from experiments.urls import masked, sqlite_path
from speaker.common.errors import UserError

LOCKS = ("study", "best", "weights")  # of a study, that a worker holds for moments
OPENED = "RUNNING"  # as MLflow says it


@dataclass(frozen=True)
class Place:
    """Which stores are looked at, and the folder beside them."""

    store: TrackingStore
    storage_url: str
    state: Path


@dataclass(frozen=True)
class Book:
    """What both stores say of a study."""

    study: optuna.Study
    trials: Sequence[FrozenTrial]
    held: frozenset[int]  # trials that a worker is at
    is_running: bool  # whether somebody is at work on it
    parents: Sequence[Run] = ()  # that say they are its run, oldest first, the deleted ones too
    runs: Sequence[Run] = ()  # of its trials, as the parents

    @property
    def name(self) -> str:
        """The study's name."""
        return self.study.study_name

    @property
    def identity(self) -> str | None:
        """What tells it from others of this name."""
        return self.study.user_attrs.get(IDENTITY)

    @property
    def parent(self) -> str | None:
        """The run that it says is its own."""
        return self.study.user_attrs.get(PARENT)

    @cached_property
    def linked(self) -> dict[str, FrozenTrial]:
        """Its trials, by the run that each says is its own."""
        return {
            trial.user_attrs[RUN_ID]: trial for trial in self.trials if RUN_ID in trial.user_attrs
        }

    def fault(
        self,
        kind: str,
        trial: FrozenTrial | None,
        words: str,
        remedy: str,
        mend: Callable[[], object] | None = None,
    ) -> Finding:
        """Return what is wrong with one of its trials, or with the study itself."""
        where = self.name if trial is None else self.where(trial.number)
        return Finding(kind, where, words, remedy, mend, study=self.name)

    def where(self, number: int | str) -> str:
        """Return what one of its trials is called in a table."""
        return f"{self.name} #{number}"


@dataclass(frozen=True)
class Survey:
    """What both stores say."""

    place: Place
    storage: RDBStorage | None
    runs: Mapping[str, Run]  # by id, the deleted ones too
    books: Sequence[Book]  # of the studies that are looked at
    studies: Collection[str] = field(default_factory=set)  # all that the storage has, by name
    only: str | None = None  # the study that alone is looked at, if one is

    @property
    def store(self) -> TrackingStore:
        """The tracking store."""
        return self.place.store

    @property
    def is_whole(self) -> bool:
        """Whether all studies are looked at, and what is no study's."""
        return self.only is None

    @cached_property
    def at_rest(self) -> list[Book]:
        """The studies that nobody works on."""
        return [book for book in self.books if not book.is_running]

    @cached_property
    def owners(self) -> dict[str, tuple[Book, FrozenTrial]]:
        """Whose a run is, by its id, as the trials say."""
        return {run: (book, trial) for book in self.books for run, trial in book.linked.items()}

    def digests(self) -> set[str]:
        """Return the corpora that anything here was trained on."""
        contracts = {book.study.user_attrs[CONTRACT].get("corpus", "") for book in self.books}
        return contracts | {run.data.tags.get("corpus.digest", "") for run in self.runs.values()}


def read(place: Place, only: str | None = None, ours: Collection[str] = ()) -> Survey:
    """Return what both stores say of all studies, or of `only` one, which must be in one of them.

    Nobody works on the studies that are `ours`: the caller keeps them. Raises UserError for an
    unknown study.
    """
    storage = existing_storage(place.storage_url)
    known = optuna.get_all_study_names(storage) if storage else []
    looked_at = [name for name in known if only in (None, name)]
    at_work = {name for name in looked_at if _is_at_work(place, name, name in ours)}
    runs = {run.info.run_id: run for run in place.store.runs("", ViewType.ALL)}
    named = {run.data.tags.get(names.STUDY) for run in runs.values()}
    if only and only not in {*known, *named}:
        place.store.validate_study(only)
        raise UserError(
            f"study {only!r} has deleted runs alone in {place.store.shown}; bring them back: "
            f"python -m experiments restore --study {only}{place.store.flag()}"
        )
    books = [
        _open(place, storage, name, runs, name in at_work, name in ours)
        for name in looked_at
        if storage
    ]
    return Survey(
        place,
        storage,
        runs,
        [book for book in books if CONTRACT in book.study.user_attrs],
        set(known),
        only,
    )


def existing_storage(url: str) -> RDBStorage | None:
    """Open the study storage, if there is one: none is made."""
    path = sqlite_path(url)
    return None if path and not path.exists() else open_storage(url)


def is_active(run: Run) -> bool:
    """Tell whether a run was not deleted."""
    return bool(run.info.lifecycle_stage == "active")


def is_kept_in(run: Run, storage_url: str) -> bool:
    """Tell whether a study's run says that its trials are kept in this storage."""
    said = run.data.tags.get("storage", "")
    there, here = sqlite_path(said), sqlite_path(storage_url)
    return there == here if there or here else said == masked(storage_url)


def held_trials(place: Place, study: str, trials: Sequence[FrozenTrial]) -> frozenset[int]:
    """Return the trials of a study that a worker is at, by number."""
    locks = open_locks(place.storage_url, study, only_look=True)
    held = locks.held(f"trial-{trial.number}" for trial in trials)
    return frozenset(int(name.removeprefix("trial-")) for name in held)


def _is_at_work(place: Place, study: str, is_ours: bool) -> bool:
    """Tell whether somebody is at work on a study, apart from its trials."""
    locks = open_locks(place.storage_url, study, only_look=True)
    return bool(locks.held(LOCKS if is_ours else (ALIVE, *LOCKS)))


def _open(
    place: Place,
    storage: RDBStorage,
    name: str,
    runs: Mapping[str, Run],
    was_running: bool,
    is_ours: bool,
) -> Book:
    """Read a study's trials, and then look again whether somebody is at work: what was read before
    and after a trial's end disagrees.
    """
    study = optuna.load_study(study_name=name, storage=storage)
    trials = study.get_trials(deepcopy=False)
    held = held_trials(place, name, trials)
    mine = [run for run in runs.values() if run.data.tags.get(names.STUDY) == name]
    return Book(
        study,
        trials,
        held,
        was_running or bool(held) or _is_at_work(place, name, is_ours),
        [run for run in mine if run.data.tags.get(names.KIND) == names.KIND_STUDY],
        [run for run in mine if run.data.tags.get(names.KIND) == names.KIND_TRIAL],
    )
