"""Fill a study's two stores with invented trials that have ended, table by table: with a call for
each trial it would take hours.
"""

import math
import random
import uuid
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.storages._rdb.models import (
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import TrialState

from experiments.proposals.attributes import RUN_ID
from experiments.study.search import StudyWorker
from experiments.tracking import names

BATCH = 1_000  # trials
EVALUATIONS = 5  # of a trial that was not stopped
OTHERS = 12  # tags, params and metrics of a run that no search asks for
BEGIN = datetime(2026, 11, 1)
Rows = defaultdict[Any, list[dict[str, Any]]]  # of a table


def fill(worker: StudyWorker, count: int) -> None:
    """Add so many trials, half of them stopped, and their runs to a worker's empty study."""
    draw = random.Random(count)  # noqa: S311  # no secrets
    optuna, mlflow = (
        sqlalchemy.create_engine(url) for url in (worker.spec.storage_url, worker.shared.store.uri)
    )
    for first in range(0, count, BATCH):
        trials, runs = Rows(list), Rows(list)
        for number in range(first, min(first + BATCH, count)):
            run_id = uuid.UUID(int=draw.getrandbits(128)).hex
            _add_trial(trials, worker, number, run_id, draw)
            _add_run(runs, worker, number, run_id)
        for engine, rows in ((optuna, trials), (mlflow, runs)):
            with engine.begin() as connection:
                for model, several in rows.items():
                    connection.execute(sqlalchemy.insert(model.__table__), several)
    with optuna.begin() as connection:
        if optuna.name == "postgresql":  # which counted no trial_id that was given
            last = sqlalchemy.text("SELECT setval('trials_trial_id_seq', :last)")
            connection.execute(last, {"last": count})
    optuna.dispose()
    mlflow.dispose()


def _add_trial(
    rows: Rows, worker: StudyWorker, number: int, run_id: str, draw: random.Random
) -> None:
    steps, end = worker.spec.settings.base.steps, 0.3 + 0.3 * draw.random()
    stopped = draw.random() < 0.5
    reports = 1 if stopped else EVALUATIONS
    of_trial, ended = {"trial_id": number + 1}, BEGIN + timedelta(seconds=number)
    rows[TrialModel].append(
        {
            **of_trial,
            "number": number,
            "study_id": worker.study._study_id,
            "state": TrialState.PRUNED if stopped else TrialState.COMPLETE,
            "datetime_start": ended,
            "datetime_complete": ended,
        }
    )
    for part in range(1, reports + 1):
        rows[TrialIntermediateValueModel].append(
            {
                **of_trial,
                "step": steps * part // EVALUATIONS,
                "intermediate_value": end * part / EVALUATIONS,
                "intermediate_value_type": "FINITE",
            }
        )
    value = {"objective": 0, "value": end * reports / EVALUATIONS, "value_type": "FINITE"}
    rows[TrialValueModel].append({**of_trial, **value})
    attribute = {"key": RUN_ID, "value_json": f'"{run_id}"'}
    rows[TrialUserAttributeModel].append({**of_trial, **attribute})
    for name, values in worker.spec.settings.space.distributions().items():
        rows[TrialParamModel].append(
            {
                **of_trial,
                "param_name": name,
                "param_value": values.to_internal_repr(_draw(values, draw)),
                "distribution_json": distribution_to_json(values),
            }
        )


def _add_run(rows: Rows, worker: StudyWorker, number: int, run_id: str) -> None:
    of_run, when = {"run_uuid": run_id}, int(BEGIN.timestamp() * 1000) + 1000 * number
    rows[SqlRun].append(
        {
            **of_run,
            "name": f"#{number}",
            "experiment_id": int(worker.shared.store.experiment_id),
            "status": "FINISHED",
            "start_time": when,
            "end_time": when,
            "lifecycle_stage": "active",
            "artifact_uri": "",
            "user_id": "",
        }
    )
    tags = {
        names.KIND: names.KIND_TRIAL,
        names.STUDY: worker.study.study_name,
        names.TRIAL: str(number),
        names.PARENT: worker.shared.parent,
        names.STATE: "complete",
    }
    others = {f"other.{which}": str(number) for which in range(OTHERS)}
    at = {"timestamp": when, "step": 1, "is_nan": False}
    for key, value in others.items():
        rows[SqlParam].append({**of_run, "key": key, "value": value})
        rows[SqlLatestMetric].append({**of_run, **at, "key": key, "value": 0.5})
    for key, value in (tags | others).items():
        rows[SqlTag].append({**of_run, "key": key, "value": value})


def _draw(values: BaseDistribution, draw: random.Random) -> Any:
    if isinstance(values, CategoricalDistribution):
        return draw.choice(values.choices)
    if isinstance(values, IntDistribution):
        return draw.randint(values.low, values.high)
    assert isinstance(values, FloatDistribution)
    return math.exp(draw.uniform(math.log(values.low), math.log(values.high)))
