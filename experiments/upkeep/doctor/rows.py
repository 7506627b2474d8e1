"""Faults of the accuracies that trials reported: those in MLflow against those in the study."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from mlflow.entities import Metric, Run
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric
from optuna.trial import FrozenTrial, TrialState

from experiments.tracking import names
from experiments.tracking.histories import History
from experiments.tracking.store import TrackingStore
from experiments.upkeep.doctor.findings import Finding
from experiments.upkeep.doctor.survey import Book, Survey
from experiments.upkeep.doctor.trials import pairs
from experiments.upkeep.leftovers import backend_of
from speaker.training.metrics import ACCURACY_CROPS, OBJECTIVE


def rows(found: Survey) -> Iterator[Finding]:
    """Yield the trials whose rows are doubled, missing or others than the study heard of.

    A trial that is open may be a row ahead or behind: it logs again what is missing when it goes
    on.
    """
    for book in found.at_rest:
        both = list(pairs(found, book))
        curves = found.store.curves([run for _, run in both])
        for trial, run in both:
            yield from _compare(found.store, book, trial, run, curves[run.info.run_id])


def scores(found: Survey) -> Iterator[Finding]:
    """Yield the complete trials whose run has another accuracy than the study, or none."""
    for book in found.at_rest:
        for trial, run in pairs(found, book):
            if trial.state != TrialState.COMPLETE or trial.value is None:
                continue
            there = run.data.metrics.get(names.BEST_WHOLE)
            if there is None:
                write = partial(_write_score, found.store, trial, run)
                words = f"its run lacks {names.BEST_WHOLE}"
                yield book.fault("accuracy missing", trial, words, "writes it", write)
            elif not _is_same(there, trial.value):
                words = f"its accuracy is {trial.value:.4f}, and {there:.4f} in its run"
                yield book.fault("accuracies differ", trial, words, "cannot be")


def _compare(
    store: TrackingStore, book: Book, trial: FrozenTrial, run: Run, curve: History
) -> Iterator[Finding]:
    here, there = trial.intermediate_values, dict(curve)
    doubled = [step for step, count in Counter(step for step, _ in curve).items() if count > 1]
    if doubled:
        yield _doubled(store, book, trial, run, doubled, curve)
    both = sorted((here.keys() & there.keys()) - set(doubled))
    if wrong := next((step for step in both if not _is_same(here[step], there[step])), None):
        words = f"step {wrong}: {here[wrong]:.4f}, and {there[wrong]:.4f} in its run"
        yield book.fault("rows differ", trial, words, "cannot be")
    if not trial.state.is_finished():
        return
    if missing := sorted(here.keys() - there.keys()):
        words = f"its run lacks the rows of steps {_listed(missing)}"
        write = partial(_write_rows, store, trial, run, missing)
        yield book.fault("rows missing", trial, words, "writes their accuracies", write)
    if extra := sorted(there.keys() - here.keys()):
        words = f"its run has rows of steps {_listed(extra)}, of which the study never heard"
        yield book.fault("rows unheard of", trial, words, "cannot be")


def _doubled(
    store: TrackingStore,
    book: Book,
    trial: FrozenTrial,
    run: Run,
    steps: Sequence[int],
    curve: History,
) -> Finding:
    """Return that rows stand twice; what is the same is removed where a database can be reached."""
    words = f"rows of steps {_listed(steps)} stand twice in its run"
    values = {step: {value for at, value in curve if at == step} for step in steps}
    if any(len(each) > 1 for each in values.values()):
        return book.fault("rows doubled", trial, f"{words}, with two values", "cannot be")
    if not hasattr(backend_of(store), "ManagedSessionMaker"):
        remedy = "run this on the server's machine, with its database as --tracking-uri"
        return book.fault("rows doubled", trial, words, remedy)
    remove = partial(_remove_doubles, store, run, steps)
    return book.fault("rows doubled", trial, words, "removes the later ones", remove)


def _remove_doubles(store: TrackingStore, run: Run, steps: Sequence[int]) -> None:
    """Remove the later rows of an evaluation that was logged twice, from MLflow's table."""
    times: dict[int, list[int]] = {}
    for row in store.client.get_metric_history(run.info.run_id, OBJECTIVE):
        times.setdefault(row.step, []).append(row.timestamp)
    with backend_of(store).ManagedSessionMaker(read_only=False) as session:
        for step in steps:
            of_step = {"run_uuid": run.info.run_id, "step": step}
            first, *later = sorted(set(times[step]))
            at_first = session.query(SqlMetric).filter_by(**of_step, timestamp=first)
            kept = {row.key: row.value for row in at_first.all()}
            again = {"timestamp": later, "key": kept}
            for table in (SqlMetric, SqlLatestMetric):
                for row in _rows_of(session, table, of_step, again):
                    if table is SqlMetric:
                        session.delete(row)
                    else:  # what the UI's table shows
                        row.timestamp, row.value = first, kept[row.key]


def _rows_of(session: Any, table: Any, where: dict[str, Any], within: dict[str, Any]) -> list[Any]:
    query = session.query(table).filter_by(**where)
    for name, values in within.items():
        query = query.filter(getattr(table, name).in_(list(values)))
    return list(query.all())


def _write_rows(store: TrackingStore, trial: FrozenTrial, run: Run, steps: Sequence[int]) -> None:
    """Log accuracies that the study has heard of; the other figures of these rows are lost."""
    when = _ended_at(trial)
    metrics = [Metric(OBJECTIVE, trial.intermediate_values[step], when, step) for step in steps]
    store.client.log_metrics(run.info.run_id, metrics)


def _write_score(store: TrackingStore, trial: FrozenTrial, run: Run) -> None:
    """Log the best accuracies of a trial that its run lacks."""
    crops = store.client.get_metric_history(run.info.run_id, ACCURACY_CROPS)
    curve = trial.intermediate_values
    best = max(curve, key=lambda step: (curve[step], -step), default=None)
    when, last = _ended_at(trial), max(curve, default=0)
    metrics = [Metric(names.BEST_WHOLE, trial.value, when, last)]
    at_best = [row.value for row in crops if row.step == best][:1]
    metrics += [Metric(names.BEST_CROPS, value, when, last) for value in at_best]
    store.client.log_metrics(run.info.run_id, metrics)


def _ended_at(trial: FrozenTrial) -> int:
    """Return when a trial ended, in milliseconds: the same however often a row is written."""
    return int(trial.datetime_complete.timestamp() * 1000) if trial.datetime_complete else 0


def _is_same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9) or (math.isnan(one) and math.isnan(other))


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:5])) + ", ..." * (len(steps) > 5)
