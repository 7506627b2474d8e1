"""The MLflow store: a parent run per study, a child run per trial, one batch of rows per
evaluation. What is registered is written by register.py.
"""

import contextlib
import getpass
import logging
import os
import shlex
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow.entities import Param, Run, ViewType
from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT
from mlflow.exceptions import MlflowException

from experiments.context import TrainingContext
from experiments.tracking import names
from experiments.tracking.access import decided_by, explain_opening
from experiments.tracking.client import Client
from experiments.tracking.descriptions import PAGE, is_ours, study_notes
from experiments.tracking.histories import History, no_collecting, read_histories
from experiments.tracking.run import (
    STATUS,
    STORE_ERRORS,
    TrackedRun,
    as_tags,
    count_tags,
    dataset_input,
)
from experiments.tracking.staged import SOON_S, remove_staged
from experiments.urls import masked, sqlite_path
from speaker.common.errors import UserError, describe_differences
from speaker.common.files import create_once, real_path
from speaker.common.paths import STATE
from speaker.config import ADDED_LATER, TrialConfig
from speaker.training.metrics import OBJECTIVE

T = TypeVar("T")
OLD_SCHEMA = "out-of-date database schema"  # what MLflow says of a database of another release


class TrackingStore:
    """The MLflow store of this project, by its URI: a database's or a server's."""

    def __init__(self, uri: str, clock: Callable[[], float] = time.time) -> None:
        for library in ("mlflow", "alembic"):
            # They log whole tracebacks of what they raise.
            logging.getLogger(library).setLevel(logging.CRITICAL)
        # Its lines name the server with the user's password, between those of a search.
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)
        self.decided_by = decided_by(uri)
        mlflow.set_tracking_uri(uri)  # the registry resolves models:/ URIs by this global alone
        self.uri = uri
        self.shown = masked(uri)
        self._clock = clock
        self._path = sqlite_path(uri)
        self._reached(self._make_store)
        self.client: mlflow.MlflowClient = self._reached(lambda: Client(uri))
        self.experiment_id = self._reached(self._open_experiment)

    def open_study(
        self,
        name: str,
        identity: str,
        run_id: str | None,
        params: dict[str, str],
        tags: dict[str, str],
        context: TrainingContext,
    ) -> str:
        """Open a study's parent run, for the first time or again, and return its id.

        `identity` tells studies of one name apart. Raises UserError when the store holds another
        one of this name.
        """
        found = self.study_runs(name)
        if any(run.data.tags.get(names.STUDY_ID) != identity for run in found):
            raise UserError(
                f"{self.shown} holds another study {name!r}, of another --storage; choose another "
                f"--study, such as {name}-2"
            )
        if run_id is None:
            kept = {names.KIND: names.KIND_STUDY, names.STUDY: name, names.STUDY_ID: identity}
            run_id = found[0].info.run_id if found else self._create_run(f"study {name}", kept)
        self._must_have(run_id, name)
        self.client.update_run(run_id, status="RUNNING")
        batch = [Param(key, value) for key, value in params.items()]
        origin = {**count_tags(context), **context.tags(), names.STATE: names.RUNNING}
        self.client.log_batch(run_id, params=batch, tags=as_tags({**tags, **origin}))
        self.client.log_inputs(run_id, [dataset_input(context)])
        return run_id

    def tag_run(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of a run."""
        self.client.log_batch(run_id, tags=as_tags(tags))

    def close_study(self, run_id: str, state: str) -> None:
        """End a study's parent run."""
        self.client.set_tag(run_id, names.STATE, state)
        self.client.set_terminated(run_id, STATUS[state])

    def describe_study(self, run_id: str, text: str, link: str) -> None:
        """Describe a study's run by a text, what holds of all studies, and a link; a description
        that somebody wrote stays.
        """
        tags = self.client.get_run(run_id).data.tags
        if is_ours(tags.get(names.DESCRIPTION, "")):
            whole = f"{text}\n\n{study_notes(tags)}\n\n{link}"
            self.tag_run(run_id, {names.DESCRIPTION: whole})

    def flag(self) -> str:
        """Return the flag that names this store, after a space; nothing where none is needed."""
        # By its path: MLflow sets the environment variable itself.
        is_default = self._path == real_path(STATE) / "mlflow.db"
        return "" if is_default else f" --tracking-uri {shlex.quote(self.shown)}"

    def log_report(self, run_id: str, page: str, summary: str) -> str:
        """Keep a study's page with its run, and describe the run by a summary and a link to it;
        a description that somebody wrote stays. Returns the page's address.
        """
        kept_at = str(self.client.get_run(run_id).info.artifact_uri)
        remove_staged(kept_at, SOON_S)
        self.client.log_text(run_id, page, names.REPORT)
        place = f"#/experiments/{self.experiment_id}/runs/{run_id}/artifacts/{names.REPORT}"
        self.describe_study(run_id, summary, f"[{PAGE}]({place})")
        return f"{kept_at}/{names.REPORT}"

    def open_run(
        self, name: str, tags: dict[str, str], parent: str | None = None, run_id: str | None = None
    ) -> TrackedRun:
        """Open a trial's run, for the first time or again (by `run_id`)."""
        if run_id is None:
            parents = {names.PARENT: parent} if parent else {}
            run_id = self._create_run(name, {names.KIND: names.KIND_TRIAL, **parents, **tags})
        self._must_have(run_id, tags.get(names.STUDY, ""))
        self.client.update_run(run_id, status="RUNNING", name=name)
        self.client.set_tag(run_id, names.STATE, names.RUNNING)
        return TrackedRun(self.client, run_id, name, self._clock)

    def validate_resumable(
        self, run_id: str, config: TrialConfig, context: TrainingContext
    ) -> None:
        """Raise UserError unless a run was stopped, and is of this point, corpus, protocol and
        precision. Nothing is written.
        """
        try:
            run = self.client.get_run(run_id)
        except MlflowException:
            raise UserError(
                f"--resume must name a run, but {self.shown} has no {run_id}; look in the UI"
            ) from None
        if run.data.tags.get(names.KIND) != names.KIND_TRIAL or names.STUDY in run.data.tags:
            raise UserError(
                f"--resume is for runs of train_trial.py, but {run_id} is not one; run "
                "search.py again"
            )
        if (state := run.data.tags.get(names.STATE)) not in (names.RUNNING, "interrupted"):
            raise UserError(
                f"--resume must name a run that was stopped, but {run_id} has ended: {state}"
            )
        here = {
            **context.decisive_tags(),
            **{name: str(value) for name, value in config.to_dict().items()},
        }
        logged = {**run.data.params, **run.data.tags}
        defaults = {
            name: str(value)
            for name, value in TrialConfig().to_dict().items()
            if name in ADDED_LATER
        }
        # A run that died before it logged its setup lacks all of it, and may be resumed as
        # anything.
        there = (
            {name: {**here, **defaults, **logged}[name] for name in here}
            if run.data.params
            else here
        )
        if changes := describe_differences(there, here):
            raise UserError(
                f"run {run_id} is of another training: {changes}; give the flags it began with"
            )

    def find_run(self, study: str, number: int) -> str | None:
        """Return the id of a trial's run: a worker may have died before the trial knew of it."""
        found = self.trial_runs(study, f"tags.{names.TRIAL} = '{number}'")
        return found[0].info.run_id if found else None

    def study_runs(self, study: str) -> list[Run]:
        """Return the parent runs of the studies of this name: one, or none."""
        return self.runs(_parent_of(study))

    def validate_study(self, study: str) -> None:
        """Raise UserError for a study that is not here, or was deleted."""
        if self.study_runs(study):
            return
        if self.runs(_parent_of(study), ViewType.DELETED_ONLY):
            raise UserError(
                f"study {study!r} was deleted from {self.shown}; bring it back: python -m "
                f"experiments restore --study {study}{self.flag()}"
            )
        raise UserError(
            f"there is no study {study!r} in {self.shown}; run search.py --study {study} first"
        )

    def trial_runs(self, study: str, condition: str = "") -> list[Run]:
        """Return the runs of a study's trials, oldest first: all, or those that meet an MLflow
        filter.
        """
        of_study = f"tags.{names.STUDY} = '{study}' and tags.{names.KIND} = '{names.KIND_TRIAL}'"
        return self.runs(f"{of_study} and {condition}" if condition else of_study)

    def left_open(self, study: str) -> list[TrackedRun]:
        """Return the runs of a study's trials that are RUNNING in the store."""
        return [
            TrackedRun(self.client, run.info.run_id, run.info.run_name, self._clock)
            for run in self.trial_runs(study, "attributes.status = 'RUNNING'")
        ]

    def curves(self, runs: Sequence[Run]) -> dict[str, History]:
        """Return what trials reported, by run: (step, accuracy on whole utterances), in order."""
        return read_histories(self.client, [run.info.run_id for run in runs], OBJECTIVE)

    def runs(self, condition: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
        """Return the runs of the experiment that meet an MLflow filter, oldest first; those that
        were deleted only in another view.
        """
        runs: list[Run] = []
        token: str | None = None
        with no_collecting():
            while token != "":
                page = self.client.search_runs(
                    [self.experiment_id],
                    condition,
                    view,
                    1000,
                    ["attributes.start_time ASC"],
                    token,
                )
                runs += page
                token = page.token or ""
        return runs

    def _create_run(self, name: str, tags: dict[str, str]) -> str:
        source = {
            "mlflow.source.name": _program(),
            "mlflow.source.type": "LOCAL",
            "mlflow.user": _user(),
        }
        run = self.client.create_run(self.experiment_id, tags={**source, **tags}, run_name=name)
        return str(run.info.run_id)

    def _must_have(self, run_id: str, study: str) -> None:
        """Raise UserError for a run that is not in the store, or was deleted there."""
        try:
            deleted = self.client.get_run(run_id).info.lifecycle_stage != "active"
        except MlflowException:
            raise UserError(
                f"the runs of study {study!r} must be in the tracking store, but run {run_id} is "
                f"not in {self.shown}; give the right --tracking-uri, or choose another --study"
            ) from None
        if deleted:
            which = f"--study {study}" if study else f"--run {run_id}"
            raise UserError(
                f"run {run_id} was deleted from {self.shown}; bring it back: python -m experiments "
                f"restore {which}{self.flag()}"
            )

    def _open_experiment(self) -> str:
        place = _artifacts(self._path) if self._path else None
        experiment = self.client.get_experiment_by_name(names.EXPERIMENT)
        if experiment is None:
            try:
                return str(self.client.create_experiment(names.EXPERIMENT, place))
            except MlflowException:  # another worker was faster
                experiment = self.client.get_experiment_by_name(names.EXPERIMENT)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {names.EXPERIMENT!r} was deleted from {self.shown}; bring "
                f"it back: python -m experiments restore{self.flag()}"
            )
        location = str(experiment.artifact_location)
        if place and location.startswith("file:") and location != place:
            raise UserError(
                f"{self._path} keeps its artifacts in {location}, so it was moved or copied from "
                f"there; make this its home: python -m experiments moved{self.flag()}"
            )
        return str(experiment.experiment_id)

    def _make_store(self) -> None:
        if self._path:
            place = _artifacts(self._path)
            create_once(self._path, lambda partial: _create_store(partial, place))
            # MLflow would try a file that is no database again and again, for two minutes.
            with contextlib.closing(sqlite3.connect(self._path)) as connection:
                connection.execute("PRAGMA schema_version")

    def _reached(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (*STORE_ERRORS, sqlite3.Error, ValueError, ImportError) as error:
            if OLD_SCHEMA in str(error):
                raise UserError(
                    f"the tracking store {self.shown} is of another MLflow than "
                    f"{version('mlflow')}; if of an older one, copy it, and bring it up to date: "
                    f"mlflow db upgrade {shlex.quote(self.shown)}"
                ) from error
            raise UserError(explain_opening(self.uri, self.decided_by, error)) from error


def default_tracking_uri(state: Path) -> str:
    """Return the usual environment variable's store, or else the database in the state folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{real_path(state) / 'mlflow.db'}"


def existing_store(uri: str | None, state: Path) -> TrackingStore:
    """Open a store that must be there already. Raises UserError when it is not."""
    return TrackingStore(existing_uri(uri, state))


def existing_uri(uri: str | None, state: Path) -> str:
    """Return the address of a store that must be there already. Raises UserError when it is not."""
    uri = uri or default_tracking_uri(state)
    if (path := sqlite_path(uri)) and not path.exists():
        raise UserError(
            f"there are no runs yet: {path} is missing; run search.py here first, or give "
            "--tracking-uri"
        )
    return uri


def _parent_of(study: str) -> str:
    return f"tags.{names.STUDY} = '{study}' and tags.{names.KIND} = '{names.KIND_STUDY}'"


def _artifacts(database: Path) -> str:
    return (database.parent / "artifacts").as_uri()


def _create_store(path: Path, artifacts: str) -> None:
    """Make an MLflow database, whose migrations take seconds, with our experiment in it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{path}", artifacts)
    store.create_experiment(names.EXPERIMENT, artifact_location=artifacts)
    store.engine.dispose()


def _program() -> str:
    return Path(sys.argv[0]).name or "python"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
