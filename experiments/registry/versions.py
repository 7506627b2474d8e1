"""The versions of the registered model: found, checked, made again from their runs where their
files are lost, and copied out.
"""

import contextlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from experiments.registry.served_files import DATA, PROGRAM, digest_of, write_served
from experiments.tracking import names
from experiments.tracking.access import registry_shown
from experiments.tracking.names import FILES, MODEL, MODEL_FOLDER, SHA256, STATE
from experiments.tracking.run import STORE_ERRORS
from experiments.tracking.store import TrackingStore
from experiments.urls import sqlite_path
from speaker.common.errors import UserError
from speaker.common.files import sha256_file, write_atomically
from speaker.model.saved_model import CARD, CONFIG, SOURCE, WEIGHTS, load_model

NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a version's files."""

    words: str
    is_fatal: bool = True  # whether the weights, or what is needed to load them, are no longer good


@contextlib.contextmanager
def registering(store: TrackingStore) -> Iterator[bool]:
    """Keep other processes of this machine from changing the registry meanwhile; gives whether
    that keeps out all: a server is used by other machines, too.
    """
    if (path := sqlite_path(store.uri)) is None:
        yield False
        return
    # One lock a process, because what holds it calls others that take it.
    with FileLock(path.with_name(f".{path.name}.registry.lock"), is_singleton=True):
        yield True


def find_version(store: TrackingStore, name: str) -> ModelVersion | None:
    """Return the registered version called by an alias or a number, or None."""
    try:
        if name.isdecimal():
            return store.client.get_model_version(MODEL, name)
        return store.client.get_model_version_by_alias(MODEL, name)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        raise  # a store that does not answer is no store without a champion


def versions_of(store: TrackingStore, condition: str = "") -> list[ModelVersion]:
    """Return the versions of the registered model that meet an MLflow filter, oldest first."""
    found: list[ModelVersion] = []
    token: str | None = None
    of_model = f"name = '{MODEL}'" + (f" and {condition}" if condition else "")
    while token != "":
        page = store.client.search_model_versions(of_model, page_token=token)
        found += page
        token = page.token or ""
    return sorted(found, key=lambda each: int(each.version))


def complete_run(store: TrackingStore, run_id: str) -> Run:
    """Return the run of a complete trial. Raises UserError for any other."""
    run = find_run(store, run_id)
    if run is None:
        raise UserError(f"there is no run {run_id!r} in {store.shown}; copy its id from the UI")
    tags = run.data.tags
    if run.info.lifecycle_stage != "active":
        raise UserError(
            f"run {run_id} was deleted; bring it back: python -m experiments restore --run {run_id}"
            f"{store.flag()}"
        )
    if SHA256 not in tags or tags.get(STATE) != "complete":
        raise UserError(
            f"only a complete trial's run can be used, but run {run_id} is none; choose another"
        )
    return run


def find_run(store: TrackingStore, run_id: str) -> Run | None:
    """Return a run, also one that was deleted in the UI, or None where nothing of it is left."""
    try:
        return store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        raise


def fetch_run(store: TrackingStore, run: Run, folder: Path) -> Path:
    """Copy a run's model below `folder`, and return where it lies; it is known to load.

    Raises UserError where it is lost, or not what the run made.
    """
    fault, source = check_run(store, run, folder)
    if fault and names.REMOVED in run.data.tags:
        raise UserError(
            f"the weights of run {run.info.run_id} were removed ({run.data.tags[names.REMOVED]}); "
            f"use another run, or make them again: {run.data.tags.get(names.AGAIN, '')}"
        )
    if fault:
        raise UserError(f"{fault.words}; bring them back, or use another run")
    return source


def check_run(store: TrackingStore, run: Run, folder: Path) -> tuple[Fault | None, Path]:
    """Copy a run's model below `folder`; return what is wrong with it, or None, and where it
    lies.
    """
    place = f"{run.info.artifact_uri}/{MODEL_FOLDER}"
    return _checked(store, place, "", run.data.tags.get(SHA256, ""), folder)


def check_version(
    store: TrackingStore, registered: ModelVersion, folder: Path
) -> tuple[Fault | None, Path]:
    """Copy a version's files below `folder`; return what is wrong with them, or None, and where the
    model lies, which loads unless the fault is fatal.
    """
    place = store.client.get_model_version_download_uri(MODEL, registered.version)
    fault, source = _checked(store, place, DATA, registered.tags.get(SHA256, ""), folder)
    if fault:
        return fault, source
    if not (source / PROGRAM).is_file():
        return Fault(f"{PROGRAM} is missing in {place}", is_fatal=False), source
    expected = _logged_tags(store, registered).get(FILES)
    if expected and digest_of(source.parent) != expected:
        return Fault(f"the files in {place} were changed", is_fatal=False), source
    return None, source


def describe_broken(store: TrackingStore, run_ids: Collection[str]) -> list[str]:
    """Return a line for each version made from some runs whose files are lost or changed."""
    lines = []
    for registered in versions_of(store):
        if registered.run_id in run_ids:
            with tempfile.TemporaryDirectory() as folder:
                fault, _ = check_version(store, registered, Path(folder))
            if fault:
                lines.append(
                    f"warning: version {registered.version} of {MODEL} is broken: {fault.words}; "
                    "make it again with python -m experiments fetch --out FOLDER --model "
                    f"{registered.version}"
                )
    return lines


def restore_version(
    store: TrackingStore, registered: ModelVersion, fault: Fault, folder: Path
) -> None:
    """Make a version's files again, from the run that it was made from, and say so.

    Raises UserError where that run no longer has them.
    """
    fetched = files_of_its_run(store, registered, fault, folder / "fetched")
    served = folder / "served"
    write_served(load_model(fetched), fetched, served, registered.description or "")
    place = store.client.get_model_version_download_uri(MODEL, registered.version)
    repository = get_artifact_repository(place, tracking_uri=store.uri)
    repository.delete_artifacts()
    repository.log_artifacts(str(served))
    if FILES in _logged_tags(store, registered):
        store.client.set_logged_model_tags(logged_model_of(registered), {FILES: digest_of(served)})
    if found := check_version(store, registered, folder / "checked")[0]:
        raise UserError(
            f"version {registered.version} of {MODEL} was made again, but {found.words}; check the "
            "disk, and run this again"
        )
    print(
        f"note: {fault.words}; version {registered.version} was made again from run "
        f"{registered.run_id}",
        file=sys.stderr,
    )


def files_of_its_run(
    store: TrackingStore, registered: ModelVersion, fault: Fault, folder: Path
) -> Path:
    """Copy the model of the run that a version was made from below `folder`."""
    run = find_run(store, registered.run_id or "")
    try:
        if run is None or run.data.tags.get(SHA256) != registered.tags.get(SHA256, "none"):
            raise UserError(f"run {registered.run_id} is gone, or has other weights")
        return fetch_run(store, run, folder)
    except UserError as error:
        raise UserError(
            f"version {registered.version} is broken ({fault.words}) and its run cannot make it "
            f"again ({error}); promote another: python -m experiments promote --run ID"
        ) from error


def sound_files(store: TrackingStore, registered: ModelVersion, folder: Path) -> Path:
    """Copy a version's model below `folder`, and return where it lies; a broken version is made
    again first. Raises UserError where it cannot be.
    """
    fault, source = check_version(store, registered, folder / "first")
    if fault is None:
        return source
    with registering(store):
        fault, source = check_version(store, registered, folder / "second")
        if fault is None:  # another process was faster
            return source
        try:
            restore_version(store, registered, fault, folder)
        except UserError as error:
            if fault.is_fatal:
                raise
            print(f"warning: {error}", file=sys.stderr)
            return source
    _, source = check_version(store, registered, folder / "third")
    return source


def download_model(store: TrackingStore, name: str, folder: Path) -> str:
    """Copy the model called by an alias, a version or a run id into `folder`;
    return what it is, in words.

    Only data is copied, and its sha256 is that of the run that made it; a file beside it says which
    that was. Raises UserError when there is no such model.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if (found := find_version(store, name)) is not None:
            source = sound_files(store, found, Path(temporary))
            words = f"version {found.version} of {MODEL}"
            origin = {"model": MODEL, "version": str(found.version), "run": found.run_id}
        elif re.fullmatch("[0-9a-f]{32}", name):
            source = fetch_run(store, complete_run(store, name), Path(temporary))
            words, origin = f"run {name}", {"run": name}
        else:
            raise UserError(
                f"--model must be an alias or version of {MODEL}, a run id or a folder, but "
                f"{name!r} is none in {registry_shown(store.uri)}; promote a study first: python "
                "-m experiments promote --study NAME"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for file in (WEIGHTS, CONFIG, CARD):
            shutil.copyfile(source / file, folder / file)
        write_atomically(
            folder / SOURCE, json.dumps({**origin, "store": store.shown}, indent=1).encode()
        )
    return words


def logged_model_of(registered: ModelVersion) -> str:
    """Return the id of MLflow's logged model that a version was made of; nothing for one of
    another source.
    """
    found = re.fullmatch(r"models:/(m-[0-9a-f]+)", registered.source or "")
    return found[1] if found else ""


def _logged_tags(store: TrackingStore, registered: ModelVersion) -> dict[str, str]:
    try:
        return dict(store.client.get_logged_model(logged_model_of(registered)).tags)
    except MlflowException:  # somebody deleted it; the version and its files are there
        return {}


def _checked(
    store: TrackingStore, place: str, below: str, expected: str, folder: Path
) -> tuple[Fault | None, Path]:
    """Copy files below `folder`; return what is wrong with the model among them, in the folder
    `below`, whose weights must have the sha256 `expected`, and where it lies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        copied = mlflow.artifacts.download_artifacts(
            artifact_uri=place, dst_path=str(folder), tracking_uri=store.uri
        )
    except STORE_ERRORS:
        return Fault(f"the model's files cannot be read from {place}"), folder
    source = Path(copied, below)
    if missing := [name for name in (WEIGHTS, CONFIG, CARD) if not (source / name).is_file()]:
        words = f"the model's files cannot be read from {place} ({missing[0]} is missing)"
        return Fault(words), source
    if sha256_file(source / WEIGHTS) != expected:
        words = f"the weights in {place} must have sha256 {expected}, but have another"
        return Fault(words), source
    try:
        load_model(source)
    except UserError as error:
        return Fault(str(error).replace(copied.rstrip("/"), place)), source
    return None, source
