"""What deletions have left in MLflow's store: deleted runs, models that are no version, and files
that nothing points to. MLflow's own `mlflow gc` asks nothing of the registry: it would remove the
run that a version is made again from, and with a deleted experiment the champion's own files.
"""

import contextlib
import re
import sqlite3
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.entities import LoggedModel, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from experiments.registry.versions import find_run, logged_model_of, registering, versions_of
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from experiments.urls import sqlite_path
from speaker.common.errors import UserError

OPEN = (names.RUNNING, "interrupted", "")  # states of runs that can be resumed


@dataclass(frozen=True)
class Leftover:
    """What can be removed, how many bytes it has, and what removes it: once more does no harm."""

    kind: str
    name: str
    size: int
    remove: Callable[[], None]


@dataclass(frozen=True)
class Books:
    """The runs of a store, and which of those that were deleted must stay."""

    runs: Mapping[str, Run]  # by id, the deleted ones too
    versions: frozenset[str]  # runs that a registered version is made again from
    models: frozenset[str]  # logged models that are a version's
    open: frozenset[str]  # runs that can be resumed

    def deleted(self) -> list[Run]:
        """Return the deleted runs that nothing needs, those of trials first.

        A study's run stays while one of its trials can be resumed.
        """
        above = {self.runs[run_id].data.tags.get(names.PARENT) for run_id in self.open}
        found = [
            run
            for run_id, run in self.runs.items()
            if _is_deleted(run) and run_id not in self.versions and run_id not in above
        ]
        return sorted(found, key=lambda run: run.data.tags.get(names.KIND) == names.KIND_STUDY)

    def held(self) -> int:
        """Return how many deleted runs must stay."""
        return sum(_is_deleted(run) for run in self.runs.values()) - len(self.deleted())

    def digests(self) -> set[str]:
        """Return the corpora of the runs that stay."""
        gone = {run.info.run_id for run in self.deleted()}
        stay = (run for run_id, run in self.runs.items() if run_id not in gone)
        return {run.data.tags.get("corpus.digest", "") for run in stay}


def read_books(store: TrackingStore) -> Books:
    """Return what a store says of its runs. Raises UserError for a server's, which deletes nothing
    for good.
    """
    if not hasattr(backend_of(store), "_hard_delete_run"):
        raise UserError(
            f"only a store that is a database can be cleaned up, but {store.shown} is a server's; "
            "run this on its machine, with its database as --tracking-uri"
        )
    runs = {run.info.run_id: run for run in store.runs("", ViewType.ALL)}
    versions = versions_of(store)
    return Books(
        runs,
        frozenset(str(version.run_id) for version in versions),
        frozenset(filter(None, map(logged_model_of, versions))),
        frozenset(run_id for run_id, run in runs.items() if _is_open(run)),
    )


def run_leftovers(store: TrackingStore, books: Books) -> Iterator[Leftover]:
    """Yield the deleted runs that nothing needs."""
    for run in books.deleted():
        yield Leftover(
            "deleted runs",
            run.info.run_id,
            size_of(_local(run.info.artifact_uri)),
            partial(_remove_run, store, run),
        )


def model_leftovers(store: TrackingStore, books: Books) -> Iterator[Leftover]:
    """Yield the models that were made for a version that is no more, or never was."""
    for model in _logged_models(store):
        if model.model_id not in books.models:
            yield Leftover(
                "models of no version",
                model.model_id,
                size_of(_local(model.artifact_location)),
                partial(_remove_model, store, model),
            )


def other_stores(store: TrackingStore) -> list[str]:
    """Return the databases that lie beside a store's and keep their artifacts in the same folder.

    What is known of in one of them looks like nobody's in the other.
    """
    path, found = sqlite_path(store.uri), []
    for other in sorted(path.parent.glob("*")) if path else ():
        if other != path and other.is_file():
            with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(other)) as opened:
                query = "SELECT count(*) FROM experiments WHERE name = ?"
                if opened.execute(query, (names.EXPERIMENT,)).fetchone()[0]:
                    found.append(other.name)
    return found


def file_leftovers(store: TrackingStore, known: Container[str] = ()) -> Iterator[Leftover]:
    """Yield the folders of artifacts whose run or model is no longer in the store's file; the runs
    that are `known` are there.
    """
    path = sqlite_path(store.uri)
    root = _local(store.client.get_experiment(store.experiment_id).artifact_location)
    if path is None or root is None or root.parent != path.parent or not root.is_dir():
        return
    # Folders are listed first: what is made from now on has its record before its folder.
    folders = [*root.iterdir(), *(root / "models").glob("*")]
    for folder in sorted(folders):
        is_run = re.fullmatch("[0-9a-f]{32}", folder.name) and folder.parent == root
        is_model = re.fullmatch("m-[0-9a-f]{32}", folder.name) and folder.parent != root
        if folder.name in known:
            continue
        if (is_run and find_run(store, folder.name) is None) or (
            is_model and _find_model(store, folder.name) is None
        ):
            yield Leftover(
                "files of no run",
                folder.name,
                size_of(folder),
                partial(remove_tree, folder),
            )


def size_of(path: Path | None) -> int:
    """Return the bytes of a file, or of all files below a folder; 0 where there is nothing here."""
    if path is None or not path.exists():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def remove_tree(folder: Path) -> None:
    """Remove a folder, or what a kill has left of it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def _remove_run(store: TrackingStore, run: Run) -> None:
    """Remove a run for good, its files first, unless it was restored meanwhile."""
    found = find_run(store, run.info.run_id)
    if found is None or not _is_deleted(found):
        return
    get_artifact_repository(run.info.artifact_uri, tracking_uri=store.uri).delete_artifacts()
    if (folder := _local(run.info.artifact_uri)) and folder.parent.is_dir():
        remove_tree(folder.parent)
    backend_of(store)._hard_delete_run(run.info.run_id)


def _remove_model(store: TrackingStore, model: LoggedModel) -> None:
    """Remove a model for good, its files first, unless it became a version meanwhile."""
    with registering(store):
        if model.model_id in {logged_model_of(version) for version in versions_of(store)}:
            return
        place = model.artifact_location
        get_artifact_repository(place, tracking_uri=store.uri).delete_artifacts()
        if (folder := _local(place)) and folder.parent.is_dir():
            remove_tree(folder.parent)
        backend_of(store)._hard_delete_logged_model(model.model_id)


def _logged_models(store: TrackingStore) -> Iterator[LoggedModel]:
    """Yield this program's logged models, the deleted ones too."""
    token: str | None = None
    while token != "":
        page = store.client.search_logged_models(
            [store.experiment_id], f"name = '{names.MODEL}'", page_token=token
        )
        yield from page
        token = page.token or ""
    for model_id in backend_of(store)._get_deleted_logged_models():
        model = _find_model(store, model_id)
        if model and model.name == names.MODEL and model.experiment_id == store.experiment_id:
            yield model


def _find_model(store: TrackingStore, model_id: str) -> LoggedModel | None:
    try:
        return backend_of(store).get_logged_model(model_id, allow_deleted=True)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def backend_of(store: TrackingStore) -> Any:
    """Return MLflow's own store, whose calls `mlflow gc` uses: the client has none of these."""
    return store.client._tracking_client.store


def _is_deleted(run: Run) -> bool:
    return bool(run.info.lifecycle_stage != "active")


def _is_open(run: Run) -> bool:
    tags = run.data.tags
    is_trial = tags.get(names.KIND) == names.KIND_TRIAL
    return is_trial and not _is_deleted(run) and tags.get(names.STATE, "") in OPEN


def _local(address: str) -> Path | None:
    """Return the folder of an address, if it is one of this machine."""
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
