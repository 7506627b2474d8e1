"""Faults of studies and of their own runs."""

import math
import time
from collections.abc import Iterator
from functools import partial

from mlflow.entities import Param, Run

from experiments.study.best_so_far import after_each, log_best_so_far
from experiments.study.contract import CONTRACT, PARENT
from experiments.tracking import names
from experiments.tracking.run import STATUS, as_tags
from experiments.upkeep.doctor.findings import Finding, note
from experiments.upkeep.doctor.survey import Book, Survey, is_active, is_kept_in
from experiments.urls import masked

# Tags of a trial's run that its study's run has, too, beside all that are of the protocol.
SHARED_TAGS = ("corpus", "corpus.digest", "precision", names.UTTERANCES, names.SPEAKERS)


def running(found: Survey) -> Iterator[Finding]:
    """Yield the studies that somebody works on."""
    for book in found.books:
        if book.is_running:
            trials = ", ".join(f"#{number}" for number in sorted(book.held))
            yield note("running", book.name, f"at work on {trials or 'it'}", "left alone")


def imports_cut_off(found: Survey) -> Iterator[Finding]:
    """Yield the studies of which an import has left a part."""
    left = {
        run.data.tags[names.IMPORT].partition(" ")[2]
        for run in found.runs.values()
        if is_active(run) and _is_half_imported(run)
    }
    busy = {book.name for book in found.books if book.is_running}
    for study in sorted(left - busy):
        if found.only in (None, study):
            words = "its import was cut off"
            yield Finding("import cut off", study, words, "run the same import again")


def lost_studies(found: Survey) -> Iterator[Finding]:
    """Yield the studies whose runs are here and whose trials are not."""
    for run in found.runs.values():
        tags, study = run.data.tags, run.data.tags.get(names.STUDY, "")
        if tags.get(names.KIND) != names.KIND_STUDY or not is_active(run):
            continue
        if study in found.studies or found.only not in (None, study) or _is_half_imported(run):
            continue
        if is_kept_in(run, found.place.storage_url):
            words = f"its run {run.info.run_id} is here, but its trials are not in the storage"
            yield Finding("study missing", study, words, "bring the storage's file back")
        else:
            words = f"its trials are in {tags.get('storage', 'another storage')}"
            yield note("kept elsewhere", study, words, "give that as --storage to look at it")


def study_runs(found: Survey) -> Iterator[Finding]:
    """Yield what is wrong with which run is a study's own."""
    for book in found.at_rest:
        yield from _study_run(found, book)


def left_open(found: Survey) -> Iterator[Finding]:
    """Yield the studies whose runs say that a search goes on, or not one thing alone."""
    for book in found.at_rest:
        run = found.runs.get(book.parent or "")
        if run is None or not is_active(run):
            continue
        state, status = run.data.tags.get(names.STATE, ""), run.info.status
        if STATUS.get(state) != status:
            words = f"nobody works on it, but its run says {state or 'nothing'} and {status}"
            close = partial(found.store.close_study, run.info.run_id, "interrupted")
            yield book.fault("study left open", None, words, "calls it interrupted", close)


def behind(found: Survey) -> Iterator[Finding]:
    """Yield the studies whose best accuracy was not noted after the last trials."""
    for book in found.at_rest:
        run = found.runs.get(book.parent or "")
        if run is None or not is_active(run) or names.BEST_WHOLE not in run.data.metrics:
            continue
        ended = [trial for trial in book.trials if trial.state.is_finished()]
        noted = found.store.client.get_metric_history(run.info.run_id, names.BEST_WHOLE)
        steps = {row.step for row in noted}
        if 0 in steps:  # an older program counted from 0; a search adds what it lacks
            continue
        counted = max(steps, default=0)
        rows, _ = after_each(ended, lambda run_id: _is_there(found, run_id), counted)
        if rows and any(not math.isnan(value) for _, _, value in rows):
            words = f"the best accuracy is noted of {counted} of {len(ended)} ended trials"
            log = partial(log_best_so_far, found.store, run.info.run_id, ended, time.time)
            yield book.fault("best not noted", None, words, "notes it", log)


def _study_run(found: Survey, book: Book) -> Iterator[Finding]:
    linked = found.runs.get(book.parent or "")
    active = [run for run in book.parents if is_active(run)]
    mine = [run for run in active if run.data.tags.get(names.STUDY_ID) == book.identity]
    keeper = linked or (mine[0] if mine else None)
    for run in active:
        if run not in mine and run is not linked:
            words = f"run {run.info.run_id} is of another study of this name"
            yield Finding("two studies of a name", book.name, words, "delete the wrong one's runs")
    if keeper is None:
        if book.parent or book.trials:
            yield _missing(found, book)
        return
    if linked is None:
        words = f"it does not name its run {keeper.info.run_id}"
        link = partial(book.study.set_user_attr, PARENT, keeper.info.run_id)
        yield book.fault("study not linked", None, words, "names it", link)
    yield from _keeper(found, book, keeper)
    for run in mine:
        if run is not keeper:
            words = f"run {run.info.run_id} says that it is the study's, too"
            hide = partial(_hide, found, book, run, keeper.info.run_id)
            remedy = "deletes it, so that restore brings it back"
            yield book.fault("study run doubled", None, words, remedy, hide)


def _keeper(found: Survey, book: Book, run: Run) -> Iterator[Finding]:
    """Yield what is wrong with the run that a study says is its own."""
    own = {
        names.KIND: names.KIND_STUDY,
        names.STUDY: book.name,
        names.STUDY_ID: book.identity or "",
    }
    if not is_active(run):
        bring_back = partial(found.store.client.restore_run, run.info.run_id)
        remedy = f"restore --study {book.name} brings it back, gc removes it for good"
        if any(is_active(each) for each in book.runs):
            yield book.fault("study run deleted", None, "its run was deleted, but not those of "
                      "its trials", "brings it back", bring_back)  # fmt: skip
        else:
            yield note("study deleted", book.name, "its runs were deleted", remedy)
    if not own.items() <= run.data.tags.items():
        words = f"its run {run.info.run_id} says that it is another's"
        tag = partial(found.store.tag_run, run.info.run_id, own)
        yield book.fault("study run misnamed", None, words, "corrects its tags", tag)


def _missing(found: Survey, book: Book) -> Finding:
    """Return that a study's run is not here; it is made again where its trials' are."""
    is_here = any(is_active(run) for run in book.runs)
    words = f"its run {book.parent or ''} is not in {found.store.shown}"
    if is_here:
        make = partial(_make_again, found, book)
        return book.fault("study run missing", None, words, "makes another one", make)
    return Finding("study run missing", book.name, words, "give the right --tracking-uri")


def _make_again(found: Survey, book: Book) -> None:
    """Make a study's run again, from the study and from the runs of its trials."""
    client, study = found.store.client, book.study
    origin = next(run.data.tags for run in book.runs if is_active(run))
    tags = {key: text for key, text in origin.items() if key in SHARED_TAGS or "protocol." in key}
    tags |= {names.KIND: names.KIND_STUDY, names.STUDY: book.name}
    tags |= {names.STUDY_ID: book.identity or "", "storage": masked(found.place.storage_url)}
    name = f"study {book.name}"
    run_id = str(client.create_run(found.store.experiment_id, tags=tags, run_name=name).info.run_id)
    contract = study.user_attrs[CONTRACT]
    client.log_batch(run_id, params=[Param(key, value) for key, value in contract.items()])
    _adopt(found, book, run_id)
    study.set_user_attr(PARENT, run_id)
    ended = [trial for trial in book.trials if trial.state.is_finished()]
    log_best_so_far(found.store, run_id, ended, time.time)
    found.store.close_study(run_id, "interrupted")


def _hide(found: Survey, book: Book, run: Run, keeper: str) -> None:
    """Delete a run that a study has twice, as the UI does, once no trial's hangs below it."""
    _adopt(found, book, keeper)
    found.store.client.delete_run(run.info.run_id)


def _adopt(found: Survey, book: Book, parent: str) -> None:
    """Hang the runs of a study's trials below its own."""
    for run in book.runs:
        if is_active(run) and run.data.tags.get(names.PARENT) != parent:
            found.store.client.log_batch(run.info.run_id, tags=as_tags({names.PARENT: parent}))


def _is_half_imported(run: Run) -> bool:
    tags = run.data.tags
    is_shown = tags.get(names.KIND) == names.KIND_STUDY
    is_open = is_shown and names.IMPORTED not in tags
    return names.IMPORT in tags and (names.KIND not in tags or is_open)


def _is_there(found: Survey, run_id: str) -> bool:
    run = found.runs.get(run_id)
    return run is not None and is_active(run)
