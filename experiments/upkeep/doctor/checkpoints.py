"""Faults of checkpoints: of trainings that have ended, damaged ones, and halves."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mlflow.entities import Run

from experiments.analysis.leaderboard import ENDED
from experiments.study.locks import is_held
from experiments.tracking import names
from experiments.tracking.checkpoint_copies import CheckpointCopies
from experiments.upkeep.doctor.findings import Finding, note
from experiments.upkeep.doctor.survey import OPENED, Survey, is_active
from experiments.upkeep.doctor.trials import INTERRUPTED
from experiments.upkeep.leftovers import remove_tree
from experiments.urls import sqlite_path
from speaker.common.files import real_path
from speaker.training.checkpoint import is_whole

NAME = re.compile(r"\.?([0-9a-f]{32})\.checkpoint(\.[^.]+\.partial)?")


def left_checkpoints(found: Survey) -> Iterator[Finding]:
    """Yield the checkpoints of trainings that have ended, and halves that nobody writes now.

    Others may be at work on the same studies.
    """
    for path, run_id, is_half in _files(found):
        if _has_ended(found, run_id):
            words = "its training has ended"
        elif is_half and _is_at_rest(found, run_id):
            words = "it was being written when its worker was lost"
        else:
            continue
        kind = "half a checkpoint" if is_half else "checkpoint left"
        remove = partial(_remove, path)
        yield Finding(kind, path.name, words, "removes it", remove, study=_study(found, run_id))


def damaged_checkpoints(found: Survey) -> Iterator[Finding]:
    """Yield the checkpoints that cannot be resumed from, and those of no run here."""
    for path, run_id, is_half in _files(found):
        is_known = run_id in found.runs or run_id in found.owners
        is_stopped = not is_known or (not _has_ended(found, run_id) and _is_at_rest(found, run_id))
        if not is_half and is_stopped and not is_whole(path):
            words = "it is damaged, so that its training starts over in any case"
            remove = partial(path.unlink, missing_ok=True)
            study = _study(found, run_id)
            yield Finding("checkpoint damaged", path.name, words, "removes it", remove, study=study)
        elif not is_known and found.is_whole:
            words = "its run is not in this store; another one may have it"
            yield note("checkpoint of no run", path.name, words, "delete it if none has")


def lost_trainings(found: Survey) -> Iterator[Finding]:
    """Yield the runs of train_trial.py that say they go on though no process trains them.

    Only where the store is a file: of a server's runs other machines may have processes.
    """
    path = sqlite_path(found.store.uri)
    if path is None or path.parent != real_path(found.place.state) or not found.is_whole:
        return
    for run_id, run in found.runs.items():
        if is_alone(run) and run.info.status == OPENED and _is_at_rest(found, run_id):
            close = partial(found.store.close_study, run_id, INTERRUPTED)
            remedy = "calls it interrupted; train_trial.py --resume goes on"
            yield Finding("stranded", f"run {run_id}", "its process was lost", remedy, close)


def left_copies(found: Survey) -> Iterator[Finding]:
    """Yield the runs of a server that have ended and still keep copies of their checkpoint."""
    if not found.store.uri.startswith("http"):
        return
    for run_id, run in found.runs.items():
        owner = found.owners.get(run_id)
        is_asked_for = found.is_whole or owner is not None
        if is_asked_for and is_active(run) and _has_ended(found, run_id):
            copies = CheckpointCopies(run.info.artifact_uri, found.store.uri)
            if copies.are_there():
                where = owner[0].where(owner[1].number) if owner else f"run {run_id}"
                words, study = "its training has ended", _study(found, run_id)
                yield Finding(
                    "checkpoint's copy left", where, words, "removes it", copies.remove, study=study
                )


def is_alone(run: Run) -> bool:
    """Tell whether a run is one of train_trial.py."""
    tags = run.data.tags
    return tags.get(names.KIND) == names.KIND_TRIAL and names.STUDY not in tags


def runs_with_files(state: Path) -> set[str]:
    """Return the runs of which there are checkpoints, or halves of some."""
    found = (NAME.fullmatch(path.name) for path in (state / "checkpoints").glob("*"))
    return {match[1] for match in found if match}


def _files(found: Survey) -> Iterator[tuple[Path, str, bool]]:
    """Yield checkpoints with the run that each is of, and whether it is a half."""
    for path in sorted((found.place.state / "checkpoints").glob("*")):
        match = NAME.fullmatch(path.name)
        if match and (found.is_whole or match[1] in found.owners):
            yield path, match[1], bool(match[2])


def _remove(path: Path) -> None:
    """Remove a checkpoint, or a half, which is a folder where a copy was made."""
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def _study(found: Survey, run_id: str) -> str:
    """Return the study whose worker would write a run's checkpoint."""
    owner = found.owners.get(run_id)
    return owner[0].name if owner else ""


def _has_ended(found: Survey, run_id: str) -> bool:
    """Tell whether a training will not be resumed, and its worker has no more to do with it."""
    if owner := found.owners.get(run_id):
        book, trial = owner
        return trial.state.is_finished() and trial.number not in book.held
    run = found.runs.get(run_id)
    return run is not None and is_alone(run) and run.data.tags.get(names.STATE) in ENDED


def _is_at_rest(found: Survey, run_id: str) -> bool:
    """Tell whether a training is known here, and no process is at it."""
    if owner := found.owners.get(run_id):
        book, trial = owner
        return not book.is_running and trial.number not in book.held
    if run_id not in found.runs or not is_alone(found.runs[run_id]):
        return False
    return not is_held(found.place.state / "locks" / "runs" / f"{run_id}.lock")
