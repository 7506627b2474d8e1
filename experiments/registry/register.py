"""The MLflow registry: make a run's model a version, and say which version is champion.

Every step may be the last one before a kill. A version appears when its files are complete and
checked, an alias moves when all that is to be said of that is written, and what a kill left half
made is completed or removed by the next call.
"""

import tempfile
from pathlib import Path

from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from experiments.registry.champions import (
    PROMOTED,
    RESTORED,
    Change,
    changes,
    earlier,
    is_whole,
    key_of,
)
from experiments.registry.served_files import digest_of, write_served
from experiments.registry.versions import (
    fetch_run,
    find_run,
    find_version,
    logged_model_of,
    registering,
    versions_of,
)
from experiments.tracking.names import (
    BEST_CROPS,
    BEST_WHOLE,
    DEMOTED,
    FILES,
    FORCED,
    MODEL,
    POINT,
    PRESET,
    PROMOTED_TAG,
    SHA256,
    STUDY,
    TRIAL,
)
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.model.saved_model import load_model

# Of a run, that its version has, too: what a person reads there, and the weights' hash.
CARRIED_TAGS = (
    STUDY,
    TRIAL,
    PRESET,
    POINT,
    "corpus",
    "protocol.whole",
    "protocol.crops",
    SHA256,
)
BY_FORCE = "forced: "  # how the reason of such a change begins
ABOUT = "Names the speaker of log-mel features."


def version_of(store: TrackingStore, run_id: str) -> ModelVersion | None:
    """Return the version that was made from a run, or None."""
    known = versions_of(store, f"run_id = '{run_id}'")
    return known[-1] if known else None


def register(store: TrackingStore, run: Run, card: str, tags: dict[str, str]) -> ModelVersion:
    """Make a run's model a version, with a description and tags, if it is not one yet.

    Its files are logged so that plain MLflow can serve them, and read again before the version
    appears. Raises UserError where the run has lost its files.
    """
    client = store.client
    _make_model(store)
    if (known := version_of(store, run.info.run_id)) is None:
        logged = _log_files(store, run, card)
        known = client.create_model_version(
            MODEL,
            f"models:/{logged.model_id}",
            run.info.run_id,
            {**_carried(run), **tags},
            description=card,
            model_id=logged.model_id,
        )
    if model_id := logged_model_of(known):
        client.finalize_logged_model(model_id, "READY")
    return client.get_model_version(MODEL, known.version)


def remove_leftovers(store: TrackingStore, run_id: str) -> None:
    """Remove what killed promotions have logged and not registered: of any run where no other
    process can be promoting now, or else of this run.
    """
    with registering(store) as alone:
        used = {logged_model_of(version) for version in versions_of(store)}
        for logged in pending(store):
            is_mine = alone or logged.source_run_id == run_id
            if is_mine and logged.model_id not in used:
                place = logged.artifact_location
                get_artifact_repository(place, tracking_uri=store.uri).delete_artifacts()
                store.client.delete_logged_model(logged.model_id)


def set_champion(
    store: TrackingStore, alias: str, version: str, when: str, why: str, kind: str = PROMOTED
) -> None:
    """Give an alias to a version, and keep when and why."""
    kept, current = history(store, alias)
    change = Change(version, kind, when, current, " ".join(why.split()))
    store.client.set_registered_model_tag(MODEL, key_of(alias, len(kept)), str(change))
    store.client.set_registered_model_alias(MODEL, alias, version)
    settle(store, alias)


def settle(store: TrackingStore, alias: str) -> Change | None:
    """Write what the last change of an alias says of its versions, and return it, if a kill left
    that out.
    """
    if not (untold := find_untold(store, alias)):
        return None
    last, found, told = untold
    run = find_run(store, found.run_id)
    if FORCED in told and run and run.info.lifecycle_stage == "active":
        store.tag_run(found.run_id, {FORCED: f"{alias}: {told[FORCED]}"})
    for key, text in told.items():
        store.client.set_model_version_tag(MODEL, found.version, key, text)
    return last


def find_untold(
    store: TrackingStore, alias: str
) -> tuple[Change, ModelVersion, dict[str, str]] | None:
    """Return the last change of an alias, and the version whose tags lack what it says of it, with
    these; None where a version says it all.
    """
    kept, _ = history(store, alias)
    if not kept:
        return None
    last = kept[-1]
    if last.kind == RESTORED:
        told = {DEMOTED: f"{alias} until {last.when}: {last.why}"}
        found = find_version(store, last.before)
    else:
        told = {PROMOTED_TAG: f"{alias} since {last.when}: {last.why}"}
        if last.why.startswith(BY_FORCE):
            told[FORCED] = f"{last.when}, {last.why.removeprefix(BY_FORCE)}"
        found = find_version(store, last.version)
    return None if found is None or told.items() <= found.tags.items() else (last, found, told)


def history(store: TrackingStore, alias: str) -> tuple[list[Change], str]:
    """Return the changes of an alias, oldest first, and the version that has it now; nothing where
    none has.
    """
    current = find_version(store, alias)
    version = str(current.version) if current else ""
    try:
        tags = store.client.get_registered_model(MODEL).tags
    except MlflowException:
        if current:
            raise
        tags = {}
    return changes(tags, alias, version), version


def versions_before(store: TrackingStore, alias: str) -> list[ModelVersion]:
    """Return the versions that had an alias before the one that has it now, and were not demoted,
    the latest first; of a time without a history all that are older.
    """
    kept, current = history(store, alias)
    known = {str(version.version): version for version in versions_of(store)}
    found = earlier(kept, current)
    if not is_whole(kept):
        oldest = int(found[-1] if found else current)
        found += [version for version in reversed(known) if int(version) < oldest]
    return [known[version] for version in found if version in known and version != current]


def _make_model(store: TrackingStore) -> None:
    if not store.client.search_registered_models(f"name = '{MODEL}'"):
        store.client.create_registered_model(MODEL, description=ABOUT)


def _log_files(store: TrackingStore, run: Run, card: str) -> LoggedModel:
    """Log what a version is made of, and check that what was kept is what was sent."""
    client = store.client
    with tempfile.TemporaryDirectory() as temporary:
        fetched, served = fetch_run(store, run, Path(temporary, "run")), Path(temporary, "served")
        write_served(load_model(fetched), fetched, served, card)
        tags = {**_carried(run), FILES: digest_of(served)}
        logged = client.create_logged_model(
            run.info.experiment_id, MODEL, run.info.run_id, tags=tags
        )
        client.log_model_artifacts(logged.model_id, str(served))
        repository = get_artifact_repository(logged.artifact_location, tracking_uri=store.uri)
        kept = Path(temporary, "kept")
        kept.mkdir()
        repository.download_artifacts("", str(kept))
        if digest_of(kept) != tags[FILES]:
            raise UserError(
                f"the files of a version must be kept as they were sent, but those in "
                f"{logged.artifact_location} are not; check the disk, and promote again"
            )
    return logged


def _carried(run: Run) -> dict[str, str]:
    tags = {tag: run.data.tags[tag] for tag in CARRIED_TAGS if tag in run.data.tags}
    return tags | {key: f"{run.data.metrics[key]:.4f}" for key in (BEST_WHOLE, BEST_CROPS)}


def pending(store: TrackingStore) -> list[LoggedModel]:
    """Return the logged models of this program that were never finished."""
    found: list[LoggedModel] = []
    token: str | None = None
    while token != "":
        page = store.client.search_logged_models(
            [store.experiment_id], f"name = '{MODEL}'", page_token=token
        )
        found += [
            each for each in page if each.status == LoggedModelStatus.PENDING and FILES in each.tags
        ]
        token = page.token or ""
    return found
