"""Faults of what lies beside the stores: locks, packs, and what was half made."""

import contextlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import optuna

from experiments.study.locks import is_held
from experiments.upkeep.cleanup import remove_lock
from experiments.upkeep.doctor.findings import Finding, note
from experiments.upkeep.doctor.survey import Survey
from experiments.upkeep.leftovers import size_of
from experiments.urls import sqlite_path
from speaker.common.errors import UserError
from speaker.common.files import real_path, remove_once
from speaker.data.corpus import read_corpus
from speaker.data.pack import check_folder, digest_of, pack_name


def locks(found: Survey) -> Iterator[Finding]:
    """Yield the lock files of studies, trials and runs that are not there, unless held."""
    if not found.is_whole:
        return
    there = {f"{run_id}.lock" for run_id in found.runs}
    for path in _locks_below(found.place.state / "locks" / "runs"):
        if path.name not in there and not is_held(path):
            yield _lock("lock of no run", path, "its run is not in this store")
    if (database := sqlite_path(found.place.storage_url)) is None or found.storage is None:
        return
    # Listed before the names are read: what is made from now on has its study before its lock.
    folders = sorted((database.parent / "locks" / database.stem).glob("*"))
    files = {folder: _locks_below(folder) for folder in folders}
    known = set(optuna.get_all_study_names(found.storage))
    books = {book.name: book for book in found.at_rest}
    for folder in folders:
        for path in files[folder]:
            number, book = path.stem.removeprefix("trial-"), books.get(folder.name)
            if folder.name not in known and not is_held(path):
                yield _lock("lock of no study", path, f"study {folder.name} is not in the storage")
            elif book and number.isdecimal() and int(number) >= len(book.trials):
                yield _lock("lock of no trial", path, f"study {folder.name} has no trial {number}")


def packs(found: Survey) -> Iterator[Finding]:
    """Yield the packs that are damaged, and those of corpora that nothing here was trained on."""
    used = found.digests()
    for folder in sorted((found.place.state / "packs").glob("[!.]*/")):
        if is_held(folder.with_name(f".{folder.name}.lock")) or not found.is_whole:
            continue
        if fault := check_folder(folder):
            yield _pack(found, folder, fault)
        elif digest_of(folder) not in used:
            words = f"{size_of(folder):,} bytes of a corpus that no run and no study here has"
            yield note("pack unused", folder.name, words, "gc --delete removes it")


def halves(found: Survey) -> Iterator[Finding]:
    """Yield what was being made when its process was lost: packs, databases, the demo corpus.

    Nothing else, as a corpus that is being prepared: that goes on from its half.
    """
    state = found.place.state
    stores = map(sqlite_path, (found.store.uri, found.place.storage_url))
    paths = {real_path(state) / "demo", *filter(None, stores)}
    made = {path.with_name(f".{path.name}.partial"): path for path in paths}
    for half in (state / "packs").glob(".*.partial"):
        made[half] = half.with_name(half.name.removeprefix(".").removesuffix(".partial"))
    for half, path in sorted(made.items()):
        if half.exists() and not is_held(half.with_name(f".{path.name}.lock")):
            remove = partial(remove_once, path, half_only=True)
            yield Finding("half made", half.name, "it was never finished", "removes it", remove)


def _pack(found: Survey, folder: Path, fault: str) -> Finding:
    """Return that a pack is damaged: it may go where its corpus is there and nobody reads it."""
    if any(book.is_running for book in found.books):
        return Finding("pack damaged", folder.name, fault, "end the searches first")
    if folder.name in _packable(found):
        remove = partial(remove_once, folder)
        remedy = "removes it; a search makes it again"
        return Finding("pack damaged", folder.name, fault, remedy, remove)
    return Finding("pack damaged", folder.name, fault, "bring its corpus back, and delete it")


def _packable(found: Survey) -> set[str]:
    """Return what the packs are called of the corpora that runs were trained on, as far as these
    are still where they were, and as they were.
    """
    sources = {
        each.dataset.source for run in found.runs.values() for each in run.inputs.dataset_inputs
    }
    names = set()
    for source in sources:
        with contextlib.suppress(UserError, OSError, ValueError, AttributeError):
            uri = json.loads(source).get("uri", "")
            names.add(pack_name(read_corpus(Path(unquote(urlsplit(uri).path)))))
    return names


def _locks_below(folder: Path) -> list[Path]:
    """Return the lock files of a folder, that of the study itself last."""
    return sorted(folder.glob("*.lock"), key=lambda each: (each.name == "study.lock", each.name))


def _lock(kind: str, path: Path, words: str) -> Finding:
    where = f"{path.parent.name}/{path.name}"
    return Finding(kind, where, words, "removes it", partial(remove_lock, path))
