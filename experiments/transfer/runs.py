"""Runs as plain records: read from one store, and written into another.

A store gives its own ids to runs. What is written is no part of a study before `show_runs`: a kill
leaves runs that no command sees, and the next call removes them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from experiments.tracking import names, validation
from experiments.tracking.artifacts import CONFIG, read_text
from experiments.tracking.run import as_tags
from experiments.tracking.store import TrackingStore

MAX_PARAMS = 100  # of a batch: MLflow takes no more
HELD_BACK = (names.KIND, names.STUDY)  # tags without which a run is no study's
NOT_COPIED = ("mlflow.runName", names.PARENT, names.IMPORT, names.IMPORTED)
Number = float | Literal["nan", "inf", "-inf"]  # JSON has no such numbers


@dataclass(frozen=True)
class MetricRows:
    """A metric's curve: values[i] was logged at steps[i]."""

    key: str
    values: tuple[Number, ...]
    steps: tuple[int, ...]
    timestamps: tuple[int, ...]  # milliseconds


@dataclass(frozen=True)
class DatasetRecord:
    """A corpus, as MLflow shows it among a run's inputs."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str
    profile: str


@dataclass(frozen=True)
class RunRecord:
    """A run."""

    run_id: str
    name: str
    status: str
    start: int  # milliseconds
    end: int | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: tuple[MetricRows, ...]
    datasets: tuple[DatasetRecord, ...]
    config: str  # the point, as JSON; nothing where the run keeps none
    validation: str = ""  # see validation.py


def read_run(store: TrackingStore, run: Run) -> RunRecord:
    """Return all that a store says of a run, under present names."""
    data, info = run.data, run.info
    return RunRecord(
        info.run_id,
        info.run_name,
        info.status,
        info.start_time,
        info.end_time,
        dict(data.params),
        dict(data.tags),
        tuple(_rows(store, info.run_id, key) for key in sorted(data.metrics)),
        tuple(_dataset(each.dataset) for each in run.inputs.dataset_inputs),
        read_text(store, run, CONFIG),
        read_text(store, run, validation.FILE),
    )


def write_run(
    store: TrackingStore, record: RunRecord, mark: str, parent: str, model: Path | None
) -> str:
    """Write a run, out of sight, with the model in a folder if there is one; return its id.

    It has the tag of its import, `mark`, and hangs below the run `parent` unless that is nothing.
    """
    client = store.client
    kept = {key: value for key, value in record.tags.items() if key not in HELD_BACK + NOT_COPIED}
    above = {names.PARENT: parent} if parent else {}
    run = client.create_run(
        store.experiment_id, record.start, {**kept, **above, names.IMPORT: mark}, record.name
    )
    run_id = str(run.info.run_id)
    params = [Param(key, value) for key, value in record.params.items()]
    for first in range(0, len(params), MAX_PARAMS):
        client.log_batch(run_id, params=params[first : first + MAX_PARAMS])
    metrics = [
        Metric(rows.key, float(value), when, step)
        for rows in record.metrics
        for value, step, when in zip(rows.values, rows.steps, rows.timestamps, strict=True)
    ]
    client.log_metrics(run_id, metrics)
    if record.datasets:
        client.log_inputs(run_id, [_input(each) for each in record.datasets])
    if record.config:
        client.log_text(run_id, record.config, CONFIG)
    if record.validation:
        client.log_text(run_id, record.validation, validation.FILE)
    if model:
        client.log_artifacts(run_id, str(model), names.MODEL_FOLDER)
    client.set_terminated(run_id, _status(record.status), record.end or record.start)
    return run_id


def show_runs(
    store: TrackingStore,
    study: str,
    runs: Mapping[str, RunRecord],
    words: Callable[[str], str] = lambda text: text,
) -> None:
    """Make runs, by their ids here, those of a study; the last one's is the one that counts.

    `words` corrects what descriptions say of ids and names.
    """
    for run_id, record in runs.items():
        tags = {names.KIND: record.tags[names.KIND], names.STUDY: study}
        if text := record.tags.get(names.DESCRIPTION):
            tags[names.DESCRIPTION] = words(text)
        if record.tags.get(names.STATE) == names.RUNNING:
            tags[names.STATE] = "interrupted"
        store.client.log_batch(run_id, tags=as_tags(tags))


def remove_imported(store: TrackingStore, mark: str) -> None:
    """Remove what an import has written that did not come to its end."""
    for run in store.runs(f"tags.`{names.IMPORT}` = '{mark}'"):
        repository = get_artifact_repository(run.info.artifact_uri, tracking_uri=store.uri)
        repository.delete_artifacts()
        store.client.delete_run(run.info.run_id)


def as_json(value: float) -> Number:
    """Return a number as JSON can say it."""
    return value if math.isfinite(value) else str(float(value))  # type: ignore[return-value]


def _rows(store: TrackingStore, run_id: str, key: str) -> MetricRows:
    rows = sorted(
        store.client.get_metric_history(run_id, key), key=lambda row: (row.step, row.timestamp)
    )
    return MetricRows(
        key,
        tuple(as_json(row.value) for row in rows),
        tuple(row.step for row in rows),
        tuple(row.timestamp for row in rows),
    )


def _dataset(found: Dataset) -> DatasetRecord:
    return DatasetRecord(
        found.name, found.digest, found.source_type, found.source, found.schema or "",
        found.profile or "",
    )  # fmt: skip


def _input(record: DatasetRecord) -> DatasetInput:
    dataset = Dataset(
        record.name, record.digest, record.source_type, record.source, record.schema, record.profile
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "train and valid")])


def _status(there: str) -> str:
    """Return the status of a run that nobody writes here."""
    return there if there in ("FINISHED", "FAILED", "KILLED") else "KILLED"
