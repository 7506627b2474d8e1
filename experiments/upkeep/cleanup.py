"""Remove what deleted runs and studies have left: `python -m experiments gc`.

Nothing is removed that a registered version needs, whatever its aliases, or a trial that can be
resumed. What is not known here, such as the checkpoint of a run in another store, stays.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from experiments.analysis.leaderboard import ENDED
from experiments.analysis.text_table import Column, text_lines
from experiments.proposals.attributes import RUN_ID
from experiments.study.contract import CONTRACT, IDENTITY
from experiments.study.locks import FileLocks, open_locks
from experiments.study.storage import open_storage
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from experiments.upkeep.leftovers import (
    Books,
    Leftover,
    file_leftovers,
    model_leftovers,
    other_stores,
    read_books,
    run_leftovers,
    size_of,
)
from experiments.urls import sqlite_path
from speaker.common.errors import UserError
from speaker.common.files import parse_json, real_path, remove_once
from speaker.data.pack import ABOUT

RUN = re.compile(r"\.?([0-9a-f]{32})\.checkpoint(?:\.\d+\.partial)?")
WIDTH = 79


@dataclass
class Found:
    """What can be removed, in the order in which it is to be, and what stays though it may be
    nobody's.
    """

    leftovers: list[Leftover] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)


def find_leftovers(store: TrackingStore, storage_url: str, state: Path) -> Found:
    """Return what deleted runs and studies have left. What belongs to a run comes before it, so
    that a kill leaves nothing whose run is no longer known.
    """
    checkpoints = sorted(state.glob("checkpoints/*"))
    books = read_books(store)  # after the list of files: each of them has its run by then
    storage = _storage(storage_url)
    found = Found()
    found.leftovers += _studies(storage, storage_url, books)
    gone = {leftover.name for leftover in found.leftovers}
    kept = _contracts(storage, gone)
    found.leftovers += _checkpoints(checkpoints, books, _resumable(storage, gone), found.stays)
    found.leftovers += _study_locks(state, storage_url, storage, gone)
    found.leftovers += _run_locks(state, books)
    found.leftovers += run_leftovers(store, books)
    found.leftovers += model_leftovers(store, books)
    if others := other_stores(store):
        found.stays.append(f"packs and files of no run, which {', '.join(others)} may know")
    else:
        found.leftovers += file_leftovers(store)
        found.leftovers += _packs(state / "packs", books.digests() | kept)
    if held := books.held():
        found.stays.append(f"{held} deleted runs that registered models or open trials need")
    return found


def describe_leftovers(found: Found, is_dry: bool) -> str:
    """Return what was found, a line a kind, or that there is nothing."""
    kinds = [
        (kind, [each.size for each in group])
        for kind, group in groupby(found.leftovers, key=lambda each: each.kind)
    ]
    lines = [f"Stays: {each}." for each in found.stays]
    if not kinds:
        return "\n".join(["There is nothing to remove.", *lines])
    sizes = [size for _, each in kinds for size in each]
    columns = [
        Column("left", [*(kind for kind, _ in kinds), "all"], is_words=True),
        Column("count", [*(f"{len(each):,}" for _, each in kinds), f"{len(sizes):,}"]),
        Column("bytes", [*(f"{sum(each):,}" for _, each in kinds), f"{sum(sizes):,}"]),
    ]
    end = "Nothing was removed: --delete removes it." if is_dry else "All of it was removed."
    return "\n".join([*text_lines(columns, WIDTH), *lines, end])


def _storage(url: str) -> RDBStorage | None:
    """Open the study storage, if there is one: none is made."""
    path = sqlite_path(url)
    return None if path and not path.exists() else open_storage(url)


def _all_studies(storage: RDBStorage | None) -> list[optuna.Study]:
    if storage is None:
        return []
    return [
        optuna.load_study(study_name=name, storage=storage)
        for name in optuna.get_all_study_names(storage)
    ]


def _studies(storage: RDBStorage | None, url: str, books: Books) -> Iterator[Leftover]:
    """Yield the studies whose runs were deleted."""
    deleted = {run.data.tags.get(names.STUDY_ID) for run in books.deleted()} - {None}
    for study in _all_studies(storage):
        if storage and study.user_attrs.get(IDENTITY) in deleted:
            yield Leftover(
                "studies of deleted runs",
                study.study_name,
                0,
                partial(_remove_study, storage, url, study.study_name),
            )


def _remove_study(storage: RDBStorage, url: str, name: str) -> None:
    """Remove a study, unless a worker opens it just now."""
    if lock := open_locks(url, name).try_take("study"):
        try:
            optuna.delete_study(study_name=name, storage=storage)
        except KeyError:  # another process was faster
            pass
        finally:
            lock.release()


def _contracts(storage: RDBStorage | None, gone: set[str]) -> set[str]:
    """Return the corpora of the studies that stay."""
    studies = [study for study in _all_studies(storage) if study.study_name not in gone]
    return {study.user_attrs.get(CONTRACT, {}).get("corpus", "") for study in studies}


def _resumable(storage: RDBStorage | None, gone: set[str]) -> set[str]:
    """Return the runs of trials that are open, of the studies that stay."""
    return {
        str(trial.user_attrs.get(RUN_ID))
        for study in _all_studies(storage)
        if study.study_name not in gone
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    }


def _checkpoints(
    paths: Iterable[Path], books: Books, resumable: set[str], stays: list[str]
) -> Iterator[Leftover]:
    """Yield the checkpoints of runs that have ended or were deleted."""
    deleted, unknown = {run.info.run_id for run in books.deleted()}, 0
    for path in paths:
        if not (match := RUN.fullmatch(path.name)):
            continue
        run = books.runs.get(match[1])
        if run is None:
            unknown += 1
            continue
        has_ended = run.data.tags.get(names.STATE) in ENDED and match[1] not in resumable
        if match[1] in deleted or has_ended:
            yield Leftover(
                "checkpoints", path.name, size_of(path), partial(path.unlink, missing_ok=True)
            )
    if unknown:
        stays.append(f"{unknown} checkpoints of runs that are not in this store")


def _study_locks(
    state: Path, url: str, storage: RDBStorage | None, gone: set[str]
) -> Iterator[Leftover]:
    """Yield the lock files of studies that are not in the storage, or will not be."""
    path = sqlite_path(url)
    if path is None or storage is None or path.parent != real_path(state):
        return
    there = set(optuna.get_all_study_names(storage)) - gone
    for folder in sorted((path.parent / "locks" / path.stem).glob("*")):
        if folder.is_dir() and folder.name not in there:
            for lock in sorted(folder.glob("*.lock"), key=lambda each: each.name == "study.lock"):
                yield Leftover("locks", lock.name, size_of(lock), partial(remove_lock, lock))


def _run_locks(state: Path, books: Books) -> Iterator[Leftover]:
    """Yield the lock files of runs that have ended or were deleted."""
    deleted = {run.info.run_id for run in books.deleted()}
    for lock in sorted((state / "locks" / "runs").glob("*.lock")):
        run = books.runs.get(lock.stem)
        if run and (lock.stem in deleted or run.data.tags.get(names.STATE) in ENDED):
            yield Leftover("locks", lock.name, size_of(lock), partial(remove_lock, lock))


def remove_lock(lock: Path) -> None:
    """Remove a lock file that nobody holds, and its folder after the last one."""
    if held := FileLocks(lock.parent).try_take(lock.stem):
        lock.unlink(missing_ok=True)
        held.release()
    with contextlib.suppress(OSError):
        lock.parent.rmdir()


def _packs(folder: Path, used: set[str]) -> Iterator[Leftover]:
    """Yield the packs of corpora that no run and no study has, and what kills have left half made.

    A pack is made again from its corpus when it is needed.
    """
    for about in sorted(folder.glob(f"[!.]*/{ABOUT}")):
        with contextlib.suppress(UserError, OSError, AttributeError):
            if parse_json(about.read_bytes(), about).get("digest") not in used:
                pack = about.parent
                yield Leftover("packs", pack.name, size_of(pack), partial(remove_once, pack))
    for half in sorted(folder.glob(".*.partial")):
        pack = half.with_name(half.name.removeprefix(".").removesuffix(".partial"))
        yield Leftover(
            "packs", half.name, size_of(half), partial(remove_once, pack, half_only=True)
        )
