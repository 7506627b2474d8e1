"""The MLflow store: a parent run per study, a child run per trial, one batch of rows per
evaluation. What is registered is written by registry.py.
"""

import contextlib
import getpass
import logging
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is down answers in seconds, not minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow  # after the settings it reads at import
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from experiments.context import TrainingContext
from experiments.urls import masked
from speaker.common.errors import DeviceLostError, UserError, describe_differences, first_line
from speaker.common.files import canonical_json, create_once
from speaker.config import ADDED_LATER, TrialConfig
from speaker.model.saved_model import save_model
from speaker.training.metrics import ACCURACY_CROPS, ACCURACY_WHOLE, LOSS_WHOLE, OBJECTIVE, Metrics
from speaker.training.train import TrialResult

T = TypeVar("T")

EXPERIMENT = "speaker-classifier"
MODEL_FOLDER = "model"  # of a run's artifacts
FALLBACKS = "device.fallbacks"
SECONDS, SHA256 = "speed/seconds", "weights.sha256"
BEST_WHOLE, BEST_CROPS = "best/accuracy_whole", "best/accuracy_crops"
# A store or disk fails; no fault of the trial.
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}


class TrackedRun:
    """One run, open for writing.

    Everything it writes may be written again after a crash without standing twice.
    """

    def __init__(
        self, client: mlflow.MlflowClient, run_id: str, name: str, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._name = name
        self._clock = clock
        self.run_id = run_id
        # A trial that starts over measures again what the killed one had logged; those rows stay as
        # they are.
        self._logged = {key: self._last_step(key) for key in (OBJECTIVE, SECONDS)}

    def log_setup(self, config: TrialConfig, context: TrainingContext) -> None:
        """Log the point, field by field and whole, and the corpus."""
        params = [Param(name, str(value)) for name, value in config.to_dict().items()]
        tags = {
            "point": config.label(),
            "config.fingerprint": config.fingerprint(),
            **context.tags(),
        }
        self._client.log_batch(self.run_id, params=params, tags=_tags(tags))
        self._client.log_inputs(self.run_id, [_dataset(context)])
        self._client.log_text(self.run_id, config.to_json(), "config.json")

    def log(self, step: int, metrics: Metrics) -> None:
        """Log one evaluation's row, unless it stands there already."""
        self._log_once(OBJECTIVE, metrics, step)

    def log_result(
        self, result: TrialResult, config: TrialConfig, context: TrainingContext
    ) -> None:
        """Log the best of a trial and its weights, with what is needed to load them."""
        summary = {"model/parameters": float(result.parameters), SECONDS: result.seconds}
        if result.best:
            summary[BEST_WHOLE], summary[BEST_CROPS] = (
                result.best[ACCURACY_WHOLE],
                result.best[ACCURACY_CROPS],
            )
            summary["best/loss_whole"] = result.best[LOSS_WHOLE]
            summary["best/step"] = float(result.best_step)
            with tempfile.TemporaryDirectory() as folder:
                sha256 = save_model(
                    Path(folder),
                    result.weights,
                    config,
                    context.pack.n_mels,
                    context.pack.speakers,
                    context.pack.digest,
                )
                self._client.log_artifacts(self.run_id, folder, MODEL_FOLDER)
            self._client.set_tag(self.run_id, SHA256, sha256)
        if result.fallback:
            reasons = "; ".join((*context.compute.fallbacks, result.fallback))
            self._client.set_tag(self.run_id, FALLBACKS, reasons)
        self._log_once(SECONDS, summary, result.steps)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Close the run when what happens inside is interrupted or raises,
        and let that pass through.
        """
        try:
            yield
        except STORE_ERRORS as error:
            with contextlib.suppress(*STORE_ERRORS):
                self.close("interrupted", describe_error(error))
            raise
        except KeyboardInterrupt:
            self.close("interrupted", "stopped by the user")
            raise
        except DeviceLostError as error:
            self.close("interrupted", str(error))
            raise
        except Exception as error:
            self.close("failed", describe_error(error))
            raise

    def close(self, state: str, reason: str = "") -> None:
        """End the run: complete, pruned, failed or interrupted, with the reason as a tag.

        The UI's table shows neither tags nor more than two kinds of end, so the name of a run says
        how it ended, too.
        """
        self._client.log_batch(
            self.run_id, tags=_tags({"state": state, "state.reason": reason[:4000]})
        )
        self._client.update_run(self.run_id, name=_marked(self._name, state))
        self._client.set_terminated(self.run_id, STATUS[state])

    def _log_once(self, key: str, metrics: Metrics, step: int) -> None:
        """Log a row, known by one of its keys, unless that key has this step or a later one."""
        if step > self._logged[key]:
            now = int(self._clock() * 1000)
            rows = [Metric(name, value, now, step) for name, value in metrics.items()]
            self._client.log_batch(self.run_id, metrics=rows)

    def _last_step(self, key: str) -> int:
        return max(
            (row.step for row in self._client.get_metric_history(self.run_id, key)), default=-1
        )


class TrackingStore:
    """The MLflow store of this project, by its URI: a database's or a server's."""

    def __init__(self, uri: str, clock: Callable[[], float] = time.time) -> None:
        for library in ("mlflow", "alembic"):
            # They log whole tracebacks of what they raise.
            logging.getLogger(library).setLevel(logging.CRITICAL)
        mlflow.set_tracking_uri(uri)  # the registry resolves models:/ URIs by this global alone
        self.uri = uri
        self.shown = masked(uri)
        self._clock = clock
        self._path = _sqlite_path(uri)
        self._reached(self._make_store)
        self.client: mlflow.MlflowClient = self._reached(lambda: mlflow.MlflowClient(uri))
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
        found = self.runs(f"tags.study = '{name}' and tags.kind = 'study'")
        if any(run.data.tags.get("study.id") != identity for run in found):
            raise UserError(
                f"{self.shown} holds another study {name!r}, of another --storage; choose another "
                f"--study, such as {name}-2"
            )
        if run_id is None:
            kept = {"kind": "study", "study": name, "study.id": identity}
            run_id = found[0].info.run_id if found else self._create_run(f"study {name}", kept)
        self._must_have(run_id, name)
        self.client.update_run(run_id, status="RUNNING")
        batch = [Param(key, value) for key, value in params.items()]
        self.client.log_batch(
            run_id, params=batch, tags=_tags({**tags, **context.tags(), "state": "running"})
        )
        self.client.log_inputs(run_id, [_dataset(context)])
        return run_id

    def tag_run(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of a run."""
        self.client.log_batch(run_id, tags=_tags(tags))

    def close_study(
        self, run_id: str, state: str, best_so_far: list[tuple[int, int, float]]
    ) -> None:
        """End a study's parent run; `best_so_far` is (trial number, milliseconds, accuracy)."""
        rows = [Metric(BEST_WHOLE, value, when, number) for number, when, value in best_so_far]
        self.client.log_batch(run_id, metrics=rows, tags=_tags({"state": state}))
        self.client.set_terminated(run_id, STATUS[state])

    def open_run(
        self, name: str, tags: dict[str, str], parent: str | None = None, run_id: str | None = None
    ) -> TrackedRun:
        """Open a trial's run, for the first time or again (by `run_id`)."""
        if run_id is None:
            parents = {"mlflow.parentRunId": parent} if parent else {}
            run_id = self._create_run(name, {"kind": "trial", **parents, **tags})
        self._must_have(run_id, tags.get("study", ""))
        self.client.update_run(run_id, status="RUNNING", name=name)
        self.client.set_tag(run_id, "state", "running")
        return TrackedRun(self.client, run_id, name, self._clock)

    def reopen_run(self, run_id: str, config: TrialConfig, context: TrainingContext) -> TrackedRun:
        """Open a run that was stopped, to resume it.

        Raises UserError for one that ended, and for one of another point, corpus, protocol or
        precision.
        """
        try:
            run = self.client.get_run(run_id)
        except MlflowException:
            raise UserError(
                f"--resume must name a run, but {self.shown} has no {run_id}; look in the UI"
            ) from None
        if run.data.tags.get("kind") != "trial" or "study" in run.data.tags:
            raise UserError(
                f"--resume is for runs of train_trial.py, but {run_id} is not one; run "
                "search.py again"
            )
        if (state := run.data.tags.get("state")) not in ("running", "interrupted"):
            raise UserError(
                f"--resume must name a run that was stopped, but {run_id} has ended: {state}"
            )
        decisive = {
            key: value
            for key, value in context.tags().items()
            if key not in context.incidental_tags()
        }
        here = {**decisive, **{name: str(value) for name, value in config.to_dict().items()}}
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
        return self.open_run(config.label(), {}, run_id=run_id)

    def find_run(self, study: str, number: int) -> str | None:
        """Return the id of a trial's run: a worker may have died before the trial knew of it."""
        found = self.runs(
            f"tags.study = '{study}' and tags.kind = 'trial' and tags.trial = '{number}'"
        )
        return found[0].info.run_id if found else None

    def runs(self, condition: str) -> list[Run]:
        """Return all runs of the experiment that meet an MLflow filter, oldest first."""
        runs: list[Run] = []
        token: str | None = None
        while token != "":
            page = self.client.search_runs(
                [self.experiment_id],
                condition,
                ViewType.ACTIVE_ONLY,
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
        try:
            deleted = self.client.get_run(run_id).info.lifecycle_stage != "active"
        except MlflowException:
            deleted = True
        if deleted:
            raise UserError(
                f"the runs of study {study!r} must be in the tracking store, but run {run_id} is "
                f"not in {self.shown}; give the right --tracking-uri, or choose another --study"
            )

    def _open_experiment(self) -> str:
        place = _artifacts(self._path) if self._path else None
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            try:
                return str(self.client.create_experiment(EXPERIMENT, place))
            except MlflowException:  # another worker was faster
                experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {EXPERIMENT!r} was deleted from {self.shown}; restore it "
                "there"
            )
        location = str(experiment.artifact_location)
        if place and location.startswith("file:") and location != place:
            raise UserError(
                f"{self._path} keeps its artifacts in {location}, so it was moved or copied from "
                "there; move it back, or start a new store in another folder"
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
            reason = first_line(error)
            raise UserError(
                f"the tracking store {self.shown} does not answer ({reason}); check --tracking-uri"
            ) from error


def describe_error(error: Exception) -> str:
    """Return an error as a run's reason."""
    return f"{type(error).__name__}: {error}"


def default_tracking_uri(state: Path) -> str:
    """Return the usual environment variable's store, or else the database in the state folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{state.resolve() / 'mlflow.db'}"


def existing_store(uri: str | None, state: Path) -> TrackingStore:
    """Open a store that must be there already. Raises UserError when it is not."""
    uri = uri or default_tracking_uri(state)
    if (path := _sqlite_path(uri)) and not path.exists():
        raise UserError(
            f"there are no runs yet: {path} is missing; run search.py here first, or give "
            "--tracking-uri"
        )
    return TrackingStore(uri)


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def _artifacts(database: Path) -> str:
    return (database.parent / "artifacts").as_uri()


def _create_store(path: Path, artifacts: str) -> None:
    """Make an MLflow database, whose migrations take seconds, with our experiment in it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{path}", artifacts)
    store.create_experiment(EXPERIMENT, artifact_location=artifacts)
    store.engine.dispose()


def _dataset(context: TrainingContext) -> DatasetInput:
    """Return the corpus as MLflow shows it among a run's inputs."""
    profile = {
        "utterances": len(context.pack),
        "speakers": len(context.pack.speakers),
        "frames": len(context.pack.frames),
        "test_utterances": len(context.corpus.test),
    }
    schema = {"mels": f"float32 (frames, {context.pack.n_mels})", "speaker": "id"}
    dataset = Dataset(
        name=context.corpus.name,
        # Short, for the UI's table; the tag corpus.digest holds it all.
        digest=context.pack.digest[:12],
        source_type="local",
        source=canonical_json({"uri": context.corpus.folder.as_uri()}),
        schema=canonical_json(schema),
        profile=canonical_json(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "train and valid")])


def _tags(values: dict[str, Any]) -> list[RunTag]:
    return [RunTag(name, str(value)) for name, value in values.items()]


def _marked(name: str, state: str) -> str:
    """Return a run's name with its end in it, behind the trial's number:
    "#7 pruned d256 h8 L4 relu".
    """
    number, _, rest = name.partition(" ") if name.startswith("#") else ("", "", name)
    return name if state == "complete" else f"{number} {state} {rest}".strip()


def _program() -> str:
    return Path(sys.argv[0]).name or "python"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
