"""Faults between trials and their runs: which run is whose, and how both ended."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

from mlflow.entities import Run
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState

from experiments.analysis.leaderboard import ENDED, logged_values
from experiments.proposals.attributes import OVERRIDES, REPEATS, RUN_ID, outcome_of
from experiments.tracking import names
from experiments.tracking.run import STATUS, TrackedRun
from experiments.tracking.store import TrackingStore
from experiments.upkeep.doctor.findings import Finding, note
from experiments.upkeep.doctor.survey import OPENED, Book, Survey, is_active, is_kept_in
from speaker.common.files import canonical_json

INTERRUPTED = "interrupted"


def links(found: Survey) -> Iterator[Finding]:
    """Yield the trials that do not name a run of theirs, or have several."""
    for book in found.at_rest:
        if not _is_here(found, book):
            continue
        claims = _claims(book)
        for trial in book.trials:
            yield from _link(found, book, trial, claims[str(trial.number)])


def strangers(found: Survey) -> Iterator[Finding]:
    """Yield the runs of trials that their study does not have.

    A search would take such a run for that of its next trial. Where the study's run names another
    storage, this one may be an old copy: there nothing is deleted.
    """
    for book in found.at_rest:
        numbers = {str(trial.number) for trial in book.trials}
        parent = found.runs.get(book.parent or "")
        for run in book.runs:
            number = run.data.tags.get(names.TRIAL, "")
            if is_active(run) and number not in numbers and run.info.run_id not in book.linked:
                words = f"run {run.info.run_id} is of a trial that the study does not have"
                hide = partial(found.store.client.delete_run, run.info.run_id)
                is_sure = parent is not None and is_kept_in(parent, found.place.storage_url)
                remedy = "deletes it, so that restore --run brings it back"
                yield Finding(
                    "run of no trial",
                    book.where(number),
                    words,
                    remedy if is_sure else "give the right --storage",
                    hide if is_sure else None,
                    study=book.name,
                )


def ends(found: Survey) -> Iterator[Finding]:
    """Yield the trials that ended otherwise than their runs say, and those left open."""
    for book in found.at_rest:
        for trial, run in pairs(found, book):
            if trial.state.is_finished():
                yield from _ended(found.store, book, trial, run)
            elif trial.state == TrialState.RUNNING:
                yield from _open(found.store, book, trial, run)


def open_runs(found: Survey) -> Iterator[Finding]:
    """Yield the runs that were left open of trials that have ended and no worker is at.

    This is what a kill between a trial's end and its run's leaves; others may be at work.
    """
    for book in found.books:
        for trial, run in pairs(found, book):
            is_over = trial.state.is_finished() and trial.number not in book.held
            if is_over and run.info.status == OPENED:
                yield from _ended(found.store, book, trial, run)


def places(found: Survey) -> Iterator[Finding]:
    """Yield the runs that hang below another run than their study's."""
    for book in found.at_rest:
        for trial, run in pairs(found, book):
            parent = book.parent or run.data.tags.get(names.PARENT)
            if parent in found.runs and run.data.tags.get(names.PARENT) != parent:
                words = "its run does not hang below its study's"
                tag = partial(found.store.tag_run, run.info.run_id, {names.PARENT: parent})
                yield book.fault("run misplaced", trial, words, "hangs it there", tag)


def points(found: Survey) -> Iterator[Finding]:
    """Yield the trials whose run was trained at another point."""
    for book in found.at_rest:
        for trial, run in pairs(found, book):
            there = logged_values(run.data.params)
            here = {**trial.params, **trial.user_attrs.get(OVERRIDES, {})}
            if wrong := [name for name in here if name in there and here[name] != there[name]]:
                words = f"{wrong[0]} is {here[wrong[0]]}, and {there[wrong[0]]} in its run"
                yield book.fault("points differ", trial, words, "cannot be")


def failed(found: Survey) -> Iterator[Finding]:
    """Yield the trials that failed and were not run again."""
    for book in found.at_rest:
        repeated = {trial.user_attrs.get(REPEATS) for trial in book.trials}
        for trial in book.trials:
            if trial.state == TrialState.FAIL and trial.number not in repeated:
                where = book.where(trial.number)
                yield note("failed", where, "it failed", "--rerun-failed runs it again")


def pairs(found: Survey, book: Book) -> Iterator[tuple[FrozenTrial, Run]]:
    """Yield a study's trials that have their run, with it."""
    for trial in book.trials:
        run = found.runs.get(trial.user_attrs.get(RUN_ID, ""))
        if run and is_active(run) and _tags(book, trial).items() <= run.data.tags.items():
            yield trial, run


def write_link(storage: RDBStorage, trial: FrozenTrial, run_id: str) -> None:
    """Note a trial's run. Optuna lets nothing be noted of one that has ended, so that is written
    into its table.
    """
    if not trial.state.is_finished():
        storage.set_trial_user_attr(trial._trial_id, RUN_ID, run_id)
        return
    kept = {"trial_id": trial._trial_id, "key": RUN_ID}
    with _create_scoped_session(storage.scoped_session) as session:
        row = session.query(models.TrialUserAttributeModel).filter_by(**kept).one_or_none()
        row = row or models.TrialUserAttributeModel(**kept)
        row.value_json = canonical_json(run_id)
        session.add(row)


def _is_here(found: Survey, book: Book) -> bool:
    """Tell whether anything of a study is in the tracking store; else all of its trials would be
    said to lack their runs.
    """
    return bool(book.runs) or book.parent in found.runs


def _claims(book: Book) -> dict[str, list[Run]]:
    """Return the runs that say they are a trial's, by its number, oldest first."""
    claims: dict[str, list[Run]] = defaultdict(list)
    for run in book.runs:
        if is_active(run):
            claims[run.data.tags.get(names.TRIAL, "")].append(run)
    return claims


def _link(
    found: Survey, book: Book, trial: FrozenTrial, claims: Sequence[Run]
) -> Iterator[Finding]:
    linked = found.runs.get(trial.user_attrs.get(RUN_ID, ""))
    is_there = linked is not None and is_active(linked)
    keeper = next((run for run in claims if run is linked), claims[0] if claims else None)
    if keeper is None and not is_there:
        yield from _without(book, trial, linked)
    elif keeper is None and linked is not None:
        yield _misnamed(found, book, trial, linked)
    elif keeper is not linked and keeper is not None and found.storage:
        words = f"it does not name its run {keeper.info.run_id}"
        link = partial(write_link, found.storage, trial, keeper.info.run_id)
        yield book.fault("run not linked", trial, words, "names it", link)
    for run in claims:
        if run is not keeper and book.linked.get(run.info.run_id, trial) is trial:
            words = f"run {run.info.run_id} says that it is the trial's, too"
            hide = partial(found.store.client.delete_run, run.info.run_id)
            remedy = "deletes it, so that restore --run brings it back"
            yield book.fault("run doubled", trial, words, remedy, hide)


def _without(book: Book, trial: FrozenTrial, deleted: Run | None) -> Iterator[Finding]:
    """Yield that a trial is without its run, which may have been deleted on purpose."""
    where = book.where(trial.number)
    if trial.state == TrialState.RUNNING and RUN_ID in trial.user_attrs:
        words, remedy = "its run was deleted", "the search starts it over in a new run"
        yield note("run deleted" if deleted else "run gone", where, words, remedy)
    elif deleted:
        remedy = f"restore --run {deleted.info.run_id} brings it back, gc removes it for good"
        yield note("run deleted", where, "its run was deleted", remedy)
    elif RUN_ID in trial.user_attrs:
        words = "its run was removed for good; the study still counts it"
        yield note("run gone", where, words, "cannot be")
    elif trial.state.is_finished():
        yield book.fault("run missing", trial, "it has ended without a run", "cannot be")


def _misnamed(found: Survey, book: Book, trial: FrozenTrial, run: Run) -> Finding:
    """Return that a trial's run says it is another's, or nobody's."""
    tags = run.data.tags
    study, number = tags.get(names.STUDY), tags.get(names.TRIAL)
    words = f"its run {run.info.run_id} says that it is #{number} of study {study}"
    is_others = study != book.name and study in found.studies
    if is_others or number in {str(each.number) for each in book.trials if each is not trial}:
        return book.fault("run misnamed", trial, words, "cannot be")
    tag = partial(found.store.tag_run, run.info.run_id, _tags(book, trial))
    return book.fault("run misnamed", trial, words, "corrects its tags", tag)


def _ended(store: TrackingStore, book: Book, trial: FrozenTrial, run: Run) -> Iterator[Finding]:
    outcome, reason = outcome_of(trial), trial.user_attrs.get("reason", "")
    state, status = run.data.tags.get(names.STATE, ""), run.info.status
    if (state, status) == (outcome, STATUS[outcome]):
        return
    close = partial(_close, store, run, outcome, reason)
    if status == OPENED:
        words = f"it is {outcome}, its run was left open"
        yield book.fault("run left open", trial, words, "closes it", close)
    else:
        words = f"it is {outcome}, its run says {state or 'nothing'} and {status}"
        yield book.fault("ends differ", trial, words, f"calls the run {outcome}", close)


def _open(store: TrackingStore, book: Book, trial: FrozenTrial, run: Run) -> Iterator[Finding]:
    state, status = run.data.tags.get(names.STATE, ""), run.info.status
    if (state, status) == (INTERRUPTED, STATUS[INTERRUPTED]):
        words, remedy = "it was interrupted", "the search resumes it"
        yield note("interrupted", book.where(trial.number), words, remedy)
        return
    reason = run.data.tags.get(names.REASON) or "its worker was lost"
    close = partial(_close, store, run, INTERRUPTED, reason)
    remedy = "calls it interrupted; the search resumes it"
    if state in ENDED and status != OPENED:
        words = f"its run says {state}, but the trial has not ended"
        yield book.fault("run ended first", trial, words, remedy, close)
    else:
        yield book.fault("stranded", trial, "its worker was lost", remedy, close)


def _close(store: TrackingStore, run: Run, state: str, reason: str) -> None:
    """End a run, whose name may say how it was thought to have ended."""
    number, _, rest = run.info.run_name.partition(" ")
    word, _, label = rest.partition(" ")
    name = f"{number} {label}" if word in STATUS else run.info.run_name
    TrackedRun(store.client, run.info.run_id, name, time.time).close(state, reason)


def _tags(book: Book, trial: FrozenTrial) -> dict[str, str]:
    """Return what a trial's run says of whose it is."""
    return {
        names.KIND: names.KIND_TRIAL,
        names.STUDY: book.name,
        names.TRIAL: str(trial.number),
    }
