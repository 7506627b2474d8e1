"""`python -m experiments doctor`: all checks in their order, and what mends.

Without being told to mend it changes nothing. A study that somebody works on is left alone; while
one is mended, no search of it begins.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import optuna

from experiments.proposals.attributes import RUN_ID
from experiments.study.locks import ALIVE, open_locks
from experiments.tracking.store import TrackingStore
from experiments.upkeep.doctor import (
    beside,
    checkpoints,
    files,
    registry,
    rows,
    studies,
    trials,
)
from experiments.upkeep.doctor.findings import Finding
from experiments.upkeep.doctor.survey import Book, Place, Survey, held_trials, read
from speaker.common.errors import UserError

Check = Callable[[Survey], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    studies.running,
    studies.imports_cut_off,
    studies.lost_studies,
    studies.study_runs,
    studies.left_open,
    studies.behind,
    trials.links,
    trials.strangers,
    trials.ends,
    trials.places,
    trials.points,
    trials.failed,
    rows.rows,
    rows.scores,
    checkpoints.left_checkpoints,
    checkpoints.damaged_checkpoints,
    checkpoints.left_copies,
    checkpoints.lost_trainings,
    files.models,
    files.configs,
    files.predictions,
    files.halves_of_files,
    files.nobodys_files,
    beside.locks,
    beside.packs,
    beside.halves,
    registry.registry,
)
CHEAP: tuple[Check, ...] = (trials.open_runs, checkpoints.left_checkpoints, beside.halves)
ROUNDS = 4  # of mending: what is put right may show what was hidden


def examine(place: Place, only: str | None = None, ours: Collection[str] = ()) -> list[Finding]:
    """Return what is wrong, of all studies or of `only` one, and what is only to be known.

    The caller keeps searches from the studies that are `ours`.
    """
    found = read(place, only, ours)
    at_work = {book.name for book in found.books if book.is_running}
    findings = [finding for check in CHECKS for finding in check(found)]
    if found.storage:
        found.storage.engine.dispose()  # no connection waits for who mends, if anybody does
    return [each for each in findings if each.study not in at_work]


def mend(place: Place, only: str | None = None) -> tuple[list[Finding], list[Finding]]:
    """Put right what can be; return what was, and what is left.

    Each round looks again, with searches of the studies in question kept from beginning.
    """
    mended: list[Finding] = []
    for _ in range(ROUNDS):
        found = examine(place, only)
        studies_of = {each.study for each in found if each.mend} - {""}
        with _kept(place, studies_of) as ours:
            if studies_of:  # they may have changed before they were kept
                found = examine(place, only, ours)
            todo = [each for each in found if each.study in {*ours, ""}]
            done = [each for each in todo if _mends(each)]
        if not done:
            return mended, found
        mended += done
    return mended, examine(place, only)


def sweep(store: TrackingStore, storage_url: str, state: Path, study: optuna.Study) -> list[str]:
    """Remove and close what kills have left of a study that is about to go on, and return a line
    for each; other workers may be at it. This takes no time that grows with other studies.
    """
    place = Place(store, storage_url, state)
    open_runs = store.trial_runs(study.study_name, "attributes.status = 'RUNNING'")
    runs = {run.info.run_id: run for run in open_runs}
    touched = {*runs, *checkpoints.runs_with_files(state)}
    trials_of = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(RUN_ID) in touched
    ]
    held = held_trials(place, study.study_name, trials_of)
    book = Book(study, trials_of, held, is_running=True, runs=open_runs)
    found = Survey(place, None, runs, [book], {study.study_name}, study.study_name)
    findings = [finding for check in CHEAP for finding in check(found)]
    return [f"{each.where}: {each.words}; {each.remedy}" for each in findings if _mends(each)]


def _mends(finding: Finding) -> bool:
    """Put right what a finding says, and tell whether that could be done."""
    if finding.mend is None:
        return False
    with contextlib.suppress(UserError):  # it is found again, and said once more
        finding.mend()
        return True
    return False


@contextlib.contextmanager
def _kept(place: Place, wanted: Collection[str]) -> Iterator[set[str]]:
    """Keep searches of studies from beginning for a `with` block; gives those of which none was
    there.
    """
    with contextlib.ExitStack() as stack:
        ours = set()
        for study in sorted(wanted):
            if lock := open_locks(place.storage_url, study).try_take(ALIVE):
                stack.callback(lock.release)
                ours.add(study)
        yield ours
