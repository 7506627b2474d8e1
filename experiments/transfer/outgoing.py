"""Write a study into a file: `python -m experiments export`."""

import contextlib
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import optuna
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from optuna.storages import RDBStorage

from experiments.registry.register import version_of
from experiments.registry.versions import check_version, fetch_run, versions_of
from experiments.study.contract import IDENTITY
from experiments.study.storage import open_storage
from experiments.tracking import names
from experiments.tracking.artifacts import read_text
from experiments.tracking.store import TrackingStore
from experiments.transfer.archive import MODEL_FILES, STUDIES, Writer
from experiments.transfer.records import FORMAT, Exported, StudyRecord, VersionRecord
from experiments.transfer.runs import read_run
from experiments.transfer.trials import record_of
from experiments.urls import masked
from speaker.common.errors import UserError
from speaker.common.files import canonical_json, sync_folder


@dataclass(frozen=True)
class Written:
    """What an export has written."""

    studies: list[str]
    trials: int
    models: int
    lost: list[str]  # runs whose models are no longer there
    size: int  # bytes


def export(store: TrackingStore, storage_url: str, study: str, path: Path) -> Written:
    """Write a study, and those that confirm it, into a file: whole, or not at all.

    Raises UserError for a study that is not in both stores.
    """
    storage = open_storage(storage_url)
    parents = _parents(store, study)
    runs = {_name(parent): store.trial_runs(_name(parent)) for parent in parents}
    records = [_study(store, storage, parent, runs[_name(parent)]) for parent in parents]
    every = [run for of_study in runs.values() for run in of_study]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        writer = Writer(partial)
        kept = {run.info.run_id for run in every if _add_model(store, run, writer)}
        exported = Exported(FORMAT, tuple(records), _versions(store, kept))
        writer.add(STUDIES, canonical_json(asdict(exported)).encode())
        if page := read_text(store, parents[0], names.REPORT):
            writer.add(names.REPORT, page.encode())
        writer.close()
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    lost = [
        run.info.run_id
        for run in every
        if names.SHA256 in run.data.tags and run.info.run_id not in kept
    ]
    size = path.stat().st_size
    return Written([each.name for each in records], len(every), len(kept), lost, size)


def _parents(store: TrackingStore, study: str) -> list[Run]:
    """Return the run of a study, and those of the studies that confirm it."""
    store.validate_study(study)
    condition = f"tags.{names.CONFIRMS} = '{study}' and tags.{names.KIND} = '{names.KIND_STUDY}'"
    return [*store.study_runs(study), *store.runs(condition)]


def _study(
    store: TrackingStore, storage: RDBStorage, parent: Run, runs: Sequence[Run]
) -> StudyRecord:
    name = _name(parent)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        study = None
    identity = parent.data.tags[names.STUDY_ID]
    if study is None or study.user_attrs.get(IDENTITY) != identity:
        raise UserError(
            f"the trials of study {name!r} must be in the study storage, but are not in "
            f"{masked(str(storage.url))}; give the right --storage"
        )
    return StudyRecord(
        name,
        identity,
        dict(study.user_attrs),
        tuple(record_of(trial) for trial in study.get_trials(deepcopy=False)),
        read_run(store, parent),
        tuple(read_run(store, run) for run in runs),
    )


def _versions(store: TrackingStore, kept: Collection[str]) -> tuple[VersionRecord, ...]:
    """Return the versions that are called by a name, of the runs whose models are `kept`."""
    try:
        aliases = dict(store.client.get_registered_model(names.MODEL).aliases)
    except MlflowException:
        return ()
    found = []
    for version in versions_of(store):
        own = sorted(
            alias for alias, which in aliases.items() if str(which) == str(version.version)
        )
        if own and version.run_id in kept:
            about = version.description or ""
            found.append(VersionRecord(version.run_id, about, dict(version.tags), tuple(own)))
    return tuple(found)


def _add_model(store: TrackingStore, run: Run, writer: Writer) -> bool:
    """Add a run's model; tell whether it has one that is not lost."""
    if names.SHA256 not in run.data.tags:
        return False
    with tempfile.TemporaryDirectory() as temporary:
        folder = _fetch(store, run, Path(temporary))
        for file in MODEL_FILES if folder else ():
            writer.add_file(f"models/{run.info.run_id}/{file}", Path(folder or "", file))
    return folder is not None


def _fetch(store: TrackingStore, run: Run, folder: Path) -> Path | None:
    """Copy a run's model, or that of its version, below a folder; None where both are lost."""
    with contextlib.suppress(UserError):
        return fetch_run(store, run, folder / "run")
    if known := version_of(store, run.info.run_id):
        fault, source = check_version(store, known, folder / "version")
        return None if fault and fault.is_fatal else source
    return None


def _name(parent: Run) -> str:
    return str(parent.data.tags[names.STUDY])
