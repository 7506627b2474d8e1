"""One trial's run in MLflow, open for writing."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is down answers in seconds, not minutes: where it is worth waiting for, we do.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow  # after the settings it reads at import
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from experiments.context import TrainingContext
from experiments.tracking import names, validation
from experiments.tracking.descriptions import describe_trial
from experiments.tracking.staged import remove_staged
from speaker.common.errors import DeviceLostError
from speaker.common.files import canonical_json
from speaker.config import TrialConfig
from speaker.model.saved_model import save_model
from speaker.training.metrics import (
    ACCURACY_CROPS,
    ACCURACY_WHOLE,
    LOSS_WHOLE,
    OBJECTIVE,
    Metrics,
)
from speaker.training.train import TrialResult

# A store or disk fails; no fault of the trial.
STORE_ERRORS = (MlflowException, SQLAlchemyError, OSError)
MAX_TAG = 8_000  # characters
STATUS = {
    "complete": "FINISHED",
    "pruned": "KILLED",
    "collapsed": "KILLED",
    "infeasible": "KILLED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


class FencedError(Exception):
    """Another worker may be at work on this training now: nothing of it may be written any more."""


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
        self._logged: dict[str, int] = {}  # the last step of a key, where that is known

    def forget(self) -> None:
        """Ask the store again for what it holds: another worker may have written to it."""
        self._logged.clear()

    def artifact_uri(self) -> str:
        """Return where its artifacts lie."""
        return str(self._client.get_run(self.run_id).info.artifact_uri)

    def tag(self, name: str, value: str) -> None:
        """Set a tag."""
        self._client.log_batch(self.run_id, tags=as_tags({name: value[:MAX_TAG]}))

    def log_setup(self, config: TrialConfig, context: TrainingContext) -> None:
        """Log the point, field by field and whole, and the corpus."""
        remove_staged(self.artifact_uri())  # nobody else writes there
        params = [Param(name, str(value)) for name, value in config.to_dict().items()]
        tags = {
            names.POINT: config.label(),
            names.FINGERPRINT: config.fingerprint(),
            **count_tags(context),
            **context.tags(),
        }
        self._client.log_batch(self.run_id, params=params, tags=as_tags(tags))
        self._client.log_inputs(self.run_id, [dataset_input(context)])
        self._client.log_text(self.run_id, config.to_json(), "config.json")

    def log(self, step: int, metrics: Metrics) -> None:
        """Log one evaluation's row, unless it stands there already."""
        self._log_once(OBJECTIVE, metrics, step)

    def log_result(
        self,
        result: TrialResult,
        config: TrialConfig,
        context: TrainingContext,
        baseline: float | None = None,
    ) -> None:
        """Log the best of a trial and its weights, with what is needed to load them, and describe
        it; `baseline` is the accuracy to compare it with, where that is known.
        """
        summary = {names.PARAMETERS: float(result.parameters), names.SECONDS: result.seconds}
        about = describe_trial(result, config, context.counts(), self.run_id, baseline)
        tags = {names.DESCRIPTION: about}
        if result.best:
            summary[names.BEST_WHOLE] = result.best[ACCURACY_WHOLE]
            summary[names.BEST_CROPS] = result.best[ACCURACY_CROPS]
            tags[names.BEST_LOSS] = f"{result.best[LOSS_WHOLE]:.4f}"
            tags[names.BEST_STEP] = str(result.best_step)
            with tempfile.TemporaryDirectory() as folder:
                sha256 = save_model(
                    Path(folder),
                    result.weights,
                    config,
                    context.pack.n_mels,
                    context.pack.speakers,
                    context.pack.digest,
                )
                self._client.log_artifacts(self.run_id, folder, names.MODEL_FOLDER)
            tags[names.SHA256] = sha256
            if 0 < len(result.hits) <= MAX_TAG:
                tags[names.HITS] = result.hits
            if result.told:
                table = validation.to_csv(context, result.told)
                self._client.log_text(self.run_id, table, validation.FILE)
        if result.fallback:
            tags[names.FALLBACKS] = "; ".join((*context.compute.fallbacks, result.fallback))
        self._client.log_batch(self.run_id, tags=as_tags(tags))
        self._log_once(names.SECONDS, summary, result.steps)

    @contextlib.contextmanager
    def guarded(self, failures: tuple[type[Exception], ...] = STORE_ERRORS) -> Iterator[None]:
        """Close the run when what happens inside is interrupted or raises, unless it is another
        worker's now, and let that pass through.

        After `failures`, which are those of stores and disks, it has not ended: it is interrupted.
        """
        try:
            yield
        except FencedError:  # it is open in another worker's hands
            raise
        except (KeyboardInterrupt, Exception) as error:
            lasts = not isinstance(error, (KeyboardInterrupt, DeviceLostError, *failures))
            with contextlib.suppress(*failures):
                self.close("failed" if lasts else "interrupted", _reason(error))
            raise

    def close(self, state: str, reason: str = "") -> None:
        """End the run with an outcome, and the reason as a tag.

        The UI's table shows neither tags nor more than two kinds of end, so the name of a run says
        how it ended, too.
        """
        self._client.log_batch(
            self.run_id, tags=as_tags({names.STATE: state, names.REASON: reason[:4000]})
        )
        self._client.update_run(self.run_id, name=_marked(self._name, state))
        self._client.set_terminated(self.run_id, STATUS[state])

    def _log_once(self, key: str, metrics: Metrics, step: int) -> None:
        """Log a row, known by one of its keys, unless that key has this step or a later one: a
        trial that starts over measures again what the killed one had logged, and a call that failed
        may have done its work.
        """
        last = self._logged.pop(key) if key in self._logged else self._last_step(key)
        if step > last:
            now = int(self._clock() * 1000)
            rows = [Metric(name, value, now, step) for name, value in metrics.items()]
            self._client.log_batch(self.run_id, metrics=rows)
        self._logged[key] = max(step, last)

    def _last_step(self, key: str) -> int:
        return max(
            (row.step for row in self._client.get_metric_history(self.run_id, key)), default=-1
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the user"
    return str(error) if isinstance(error, DeviceLostError) else describe_error(error)


def describe_error(error: BaseException) -> str:
    """Return an error as a run's reason."""
    return f"{type(error).__name__}: {error}"


def dataset_input(context: TrainingContext) -> DatasetInput:
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


def count_tags(context: TrainingContext) -> dict[str, str]:
    """Return as tags how many utterances and speakers an accuracy is of."""
    utterances, speakers = context.counts()
    return {names.UTTERANCES: str(utterances), names.SPEAKERS: str(speakers)}


def as_tags(values: dict[str, Any]) -> list[RunTag]:
    """Return tags as MLflow's batches take them."""
    return [RunTag(name, str(value)) for name, value in values.items()]


def _marked(name: str, state: str) -> str:
    """Return a run's name with its end in it, behind the trial's number:
    "#7 pruned d256 h8 L4 relu". One that was marked before a kill keeps its mark.
    """
    number, _, rest = name.partition(" ") if name.startswith("#") else ("", "", name)
    rest = rest.removeprefix(f"{state} ")
    return f"{number} {rest if state == 'complete' else f'{state} {rest}'}".strip()
