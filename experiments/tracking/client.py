"""MLflow's client, to which old runs look like present ones."""

from collections.abc import MutableMapping, Sequence
from typing import Any, TypeVar

import mlflow
from mlflow.entities import Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from experiments.tracking.names import FORMER, PRESENT

V = TypeVar("V")


class Client(mlflow.MlflowClient):  # type: ignore[misc]  # some of its bases have no types
    """A client that gives metrics, and the tags of models that repeat them, their present names,
    whoever wrote them.

    Filters and orders are the store's: they must use the names that a run was written with.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._mixed: set[str] = set()  # runs that an old version began and a present one resumed

    def get_run(self, run_id: str) -> Run:
        """Return a run."""
        return self._renamed(super().get_run(run_id))

    def search_runs(self, *arguments: Any, **options: Any) -> Any:
        """Return a page of runs."""
        page = super().search_runs(*arguments, **options)
        for run in page:
            self._renamed(run)
        return page

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        """Return the values of a metric, those under its former name as well."""
        rows = list(super().get_metric_history(run_id, key))
        if key in FORMER and (not rows or run_id in self._mixed):
            former = super().get_metric_history(run_id, FORMER[key])
            rows += [Metric(key, row.value, row.timestamp, row.step) for row in former]
        return rows

    def log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Log any number of values, in batches that MLflow takes."""
        for first in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self.log_batch(run_id, metrics=metrics[first : first + MAX_METRICS_PER_BATCH])

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        """Return a version of a registered model."""
        return _retagged(super().get_model_version(name, version))

    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion:
        """Return the version of a registered model that has an alias."""
        return _retagged(super().get_model_version_by_alias(name, alias))

    def search_model_versions(self, *arguments: Any, **options: Any) -> Any:
        """Return a page of versions of registered models."""
        page: Sequence[ModelVersion] = super().search_model_versions(*arguments, **options)
        for version in page:
            _retagged(version)
        return page

    def _renamed(self, run: Run) -> Run:
        metrics = run.data.metrics
        if any(former in metrics and name in metrics for former, name in PRESENT.items()):
            self._mixed.add(run.info.run_id)
        _rename(metrics)
        return run


def _retagged(version: ModelVersion) -> ModelVersion:
    _rename(version.tags)
    return version


def _rename(values: MutableMapping[str, V]) -> None:
    """Give values their present names; one that has it already goes before a former one."""
    for former in PRESENT.keys() & values.keys():
        values.setdefault(PRESENT[former], values.pop(former))
