"""Faults of what runs keep as files: models, points, predictions."""

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from experiments.analysis.leaderboard import ENDED, logged_values, read_hits
from experiments.registry.register import version_of
from experiments.registry.versions import check_run, check_version, registering
from experiments.tracking import names, validation
from experiments.tracking.artifacts import CONFIG, read_text
from experiments.tracking.staged import staged
from experiments.tracking.store import TrackingStore
from experiments.upkeep.doctor.checkpoints import is_alone
from experiments.upkeep.doctor.findings import Finding
from experiments.upkeep.doctor.survey import Survey, is_active
from experiments.upkeep.doctor.trials import pairs
from experiments.upkeep.leftovers import file_leftovers, other_stores
from experiments.upkeep.weights import remove_weights, was_removed
from speaker.common.errors import UserError
from speaker.config import TrialConfig
from speaker.model.saved_model import CARD, WEIGHTS


def models(found: Survey) -> Iterator[Finding]:
    """Yield the runs whose model is lost or damaged, or was removed by half."""
    for where, study, run in _ended_runs(found):
        if was_removed(run):
            if files_of(found.store, run).list_artifacts(names.MODEL_FOLDER):
                words = "its weights were to be removed, but are there"
                remove = partial(_remove_rest, found.store, run)
                yield Finding(
                    "weights half removed", where, words, "removes them", remove, study=study
                )
        elif names.SHA256 in run.data.tags:
            yield from _model(found.store, where, study, run)
        elif run.data.tags.get(names.STATE) == "complete":
            words = "its run says nothing of its weights"
            yield Finding("model missing", where, words, "train it again", study=study)


def configs(found: Survey) -> Iterator[Finding]:
    """Yield the runs whose file of the point is lost or damaged."""
    for where, study, run in _ended_runs(found):
        expected = run.data.tags.get(names.FINGERPRINT)
        text = read_text(found.store, run, CONFIG)
        if expected is None or _fingerprint(text) == expected:
            continue
        kind = "config damaged" if text else "config missing"
        words = f"{CONFIG} is not there" if not text else f"{CONFIG} is not its point"
        point = TrialConfig.from_dict({**TrialConfig().to_dict(), **logged_values(run.data.params)})
        if point.fingerprint() == expected:
            write = partial(_write_config, found.store, run, point)
            remedy = "writes it from the run's params"
            yield Finding(kind, where, words, remedy, write, study=study)
        else:
            yield Finding(kind, where, words, "cannot be", study=study)


def predictions(found: Survey) -> Iterator[Finding]:
    """Yield the runs whose table of predictions is lost, or says other than what was right.

    Where no run of a study has one, an older program made them.
    """
    read = {
        run.info.run_id: read_text(found.store, run, validation.FILE)
        for _, _, run in _ended_runs(found)
    }
    having = {study for _, study, run in _ended_runs(found) if read[run.info.run_id]}
    for where, study, run in _ended_runs(found):
        hits = read_hits(run.data.tags.get(names.HITS, ""))
        text = read[run.info.run_id]
        told = tuple(each.is_right for each in validation.from_csv(text))
        if not hits or study not in having or told == hits:
            continue
        kind = "predictions damaged" if text else "predictions missing"
        words = f"{validation.FILE} is not there"
        words = f"{validation.FILE} does not agree with {names.HITS}" if text else words
        yield Finding(kind, where, words, "cannot be", study=study)


def nobodys_files(found: Survey) -> Iterator[Finding]:
    """Yield the folders of artifacts of runs and models that are not in the store."""
    if found.is_whole and not other_stores(found.store):
        for leftover in file_leftovers(found.store, found.runs):
            words = f"{leftover.size:,} bytes of no run and no model"
            yield Finding("files of no run", leftover.name, words, "gc --delete removes them")


def halves_of_files(found: Survey) -> Iterator[Finding]:
    """Yield the files of runs that were being kept when their process was lost."""
    for run in found.runs.values():
        owner = found.owners.get(run.info.run_id)
        study = owner[0].name if owner else run.data.tags.get(names.STUDY, "")
        if found.is_whole or study == found.only:
            for path in staged(run.info.artifact_uri):
                words = "it was being kept when its process was lost"
                remove = partial(path.unlink, missing_ok=True)
                where = f"run {run.info.run_id}"
                yield Finding("half a file", where, words, "removes it", remove, study=study)


def _ended_runs(found: Survey) -> Iterator[tuple[str, str, Run]]:
    """Yield the runs of trainings that have ended, with what they are called and their study."""
    for book in found.at_rest:
        for trial, run in pairs(found, book):
            if trial.state.is_finished():
                yield book.where(trial.number), book.name, run
    for run_id, run in found.runs.items():
        is_over = run.data.tags.get(names.STATE) in ENDED
        if found.is_whole and is_alone(run) and is_active(run) and is_over:
            yield f"run {run_id}", "", run


def _model(store: TrackingStore, where: str, study: str, run: Run) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as temporary:
        fault, _ = check_run(store, run, Path(temporary, "run"))
        if fault is None:
            return
        folder = files_of(store, run).list_artifacts(names.MODEL_FOLDER)
        kept = {Path(each.path).name for each in folder}
        is_lost = not {WEIGHTS, CONFIG, CARD} <= kept
        version = version_of(store, run.info.run_id)
        kind = "model missing" if is_lost else "model damaged"
        if version and _has_model(store, version, run, Path(temporary, "version")):
            copy = partial(_copy_back, store, version, run)
            remedy = f"copies it from version {version.version}"
            yield Finding(kind, where, fault.words, remedy, copy, study=study)
        else:
            yield Finding(kind, where, fault.words, "train it again", study=study)


def _has_model(store: TrackingStore, version: ModelVersion, run: Run, folder: Path) -> bool:
    """Tell whether a version keeps the model of its run, whole."""
    fault, _ = check_version(store, version, folder)
    is_same = version.tags.get(names.SHA256) == run.data.tags[names.SHA256]
    return is_same and (fault is None or not fault.is_fatal)


def _copy_back(store: TrackingStore, version: ModelVersion, run: Run) -> None:
    """Give a run its model again, from the version that was made of it."""
    with registering(store), tempfile.TemporaryDirectory() as temporary:
        fault, source = check_version(store, version, Path(temporary))
        if fault is None or not fault.is_fatal:
            for name in (CONFIG, CARD, WEIGHTS):
                files_of(store, run).log_artifact(str(source / name), names.MODEL_FOLDER)


def files_of(store: TrackingStore, run: Run) -> ArtifactRepository:
    """Return MLflow's repository of a run's files."""
    return get_artifact_repository(run.info.artifact_uri, tracking_uri=store.uri)


def _write_config(store: TrackingStore, run: Run, point: TrialConfig) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, CONFIG)
        path.write_text(point.to_json())
        files_of(store, run).log_artifact(str(path))


def _remove_rest(store: TrackingStore, run: Run) -> None:
    with registering(store):
        remove_weights(store, run)


def _fingerprint(text: str) -> str:
    """Return the fingerprint of the point that a text holds; nothing where it holds none."""
    try:
        return TrialConfig.from_dict(json.loads(text)).fingerprint()
    except (ValueError, TypeError, UserError):
        return ""
