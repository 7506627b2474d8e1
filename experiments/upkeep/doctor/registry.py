"""Faults of the registered model: its versions, their aliases, and promotions that were cut off."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from experiments.registry.register import find_untold, pending, remove_leftovers, settle
from experiments.registry.versions import (
    NOT_THERE,
    Fault,
    check_version,
    files_of_its_run,
    find_run,
    logged_model_of,
    sound_files,
    versions_of,
)
from experiments.study.locks import is_held
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from experiments.upkeep.doctor.findings import Finding, note
from experiments.upkeep.doctor.survey import Survey
from experiments.urls import sqlite_path
from speaker.common.errors import UserError


def registry(found: Survey) -> Iterator[Finding]:
    """Yield what is wrong with the registered model, unless a promotion goes on."""
    store, path = found.store, sqlite_path(found.store.uri)
    if path and is_held(path.with_name(f".{path.name}.registry.lock")):
        yield note("running", names.MODEL, "a promotion goes on", "left alone")
        return
    versions = versions_of(store)
    for version in versions:
        run = found.runs.get(version.run_id or "")
        if found.is_whole or (run and run.data.tags.get(names.STUDY) == found.only):
            yield from _version(store, version, run is not None)
    if found.is_whole:
        yield from _promotions(store, versions)
        yield from _aliases(store, versions)


def _version(store: TrackingStore, version: ModelVersion, has_run: bool) -> Iterator[Finding]:
    """Yield what is wrong with a version and its files."""
    where = f"version {version.version}"
    if not has_run and find_run(store, version.run_id or "") is None:
        words = f"its run {version.run_id} is gone; if its files are lost, they stay so"
        yield Finding("version of no run", where, words, "cannot be")
    with tempfile.TemporaryDirectory() as temporary:
        fault, _ = check_version(store, version, Path(temporary, "version"))
        if fault and _can_be_made_again(store, version, fault, Path(temporary, "run")):
            make = partial(_make_again, store, version)
            remedy = "makes it again from its run"
            yield Finding("version damaged", where, fault.words, remedy, make)
        elif fault:
            yield Finding("version damaged", where, fault.words, "promote another run")
    model_id = logged_model_of(version)
    if model_id and _is_pending(store, model_id):
        finish = partial(store.client.finalize_logged_model, model_id, "READY")
        words = "MLflow's model of it was never called ready"
        yield Finding("promotion cut off", where, words, "calls it ready", finish)


def _promotions(store: TrackingStore, versions: list[ModelVersion]) -> Iterator[Finding]:
    """Yield the models that promotions have logged and not registered."""
    used = {logged_model_of(version) for version in versions}
    for model in pending(store):
        if model.model_id not in used:
            remove = partial(remove_leftovers, store, model.source_run_id or "")
            words = f"a promotion of run {model.source_run_id} was cut off before it was a version"
            remedy = "removes its files; promote again"
            yield Finding("promotion cut off", model.model_id, words, remedy, remove)


def _aliases(store: TrackingStore, versions: list[ModelVersion]) -> Iterator[Finding]:
    """Yield the aliases of no version, and those whose last change is not told in full."""
    try:
        aliases = dict(store.client.get_registered_model(names.MODEL).aliases)
    except MlflowException as error:
        if error.error_code in NOT_THERE:  # nothing was ever promoted
            return
        raise
    there = {str(version.version) for version in versions}
    for alias, version in sorted(aliases.items()):
        if str(version) not in there:
            words = f"it is of version {version}, which is not there"
            remove = partial(store.client.delete_registered_model_alias, names.MODEL, alias)
            remedy = "removes it; promote a study"
            yield Finding("alias of no version", alias, words, remedy, remove)
        elif find_untold(store, alias):
            words = f"version {version} has it, but no version says so"
            told = partial(settle, store, alias)
            yield Finding("promotion cut off", alias, words, "writes it", told)


def _can_be_made_again(
    store: TrackingStore, version: ModelVersion, fault: Fault, folder: Path
) -> bool:
    """Tell whether a version's run has what it was made of."""
    try:
        files_of_its_run(store, version, fault, folder)
    except UserError:
        return False
    return True


def _make_again(store: TrackingStore, version: ModelVersion) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        sound_files(store, version, Path(temporary))


def _is_pending(store: TrackingStore, model_id: str) -> bool:
    try:
        return bool(store.client.get_logged_model(model_id).status == LoggedModelStatus.PENDING)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return False
        raise
