"""Rank the trials of a study by what they can be expected to score, and lay them out as a table."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from mlflow.entities import Run

from experiments.analysis.paired import paired
from experiments.proposals.curves import Curve, Estimate, estimate, places_of
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.config import TrialConfig
from speaker.training.metrics import format_accuracy, hits_of


@dataclass(frozen=True)
class Row:
    """One trial's run, as far as a reader compares it.

    Accuracies are in [0, 1]; None when it never got a score.
    """

    run_id: str
    trial: str
    point: str
    state: str
    preset: str
    replicate: str
    whole: float | None
    crops: float | None
    parameters: int
    seconds: float
    values: dict[str, Any] = field(default_factory=dict)  # of the config's fields, by name
    curve: tuple[tuple[float, float], ...] = ()  # (fraction of the budget, accuracy)
    hits: tuple[bool, ...] = ()  # of the validation utterances, by the best weights
    expected: Estimate | None = None  # accuracy on new utterances, where hits are kept
    reason: str = ""  # why it is not complete
    rescue_of: str = ""  # the trial that collapsed, where this one is its rescue
    is_tied: bool = False  # whether the validation part cannot tell it from the winner


ENDED = ("complete", "pruned", "collapsed", "infeasible", "failed")
UNFAIR = ("collapsed", "infeasible")  # ends that say nothing of the architecture
AGREEING = 5  # of the best trials: they share more of the validation part's luck than others do
SURE = 0.1  # a difference is one if luck alone makes such a one less often


def ranked(store: TrackingStore, study: str) -> list[Row]:
    """Return a study's ended trials: the complete ones best first, then the others.

    The best is the one of which most is to be expected on new utterances (see curves.py); of runs
    that an older version made, the one that scored most on the validation part. A study has one
    protocol, so its accuracies may be ranked together. Raises UserError for an unknown study.
    """
    if not store.study_runs(study):
        raise UserError(
            f"there is no study {study!r} in {store.shown}; run search.py --study {study} first"
        )
    rows = [_row(run, store) for run in store.trial_runs(study)]
    ended = _judge([row for row in rows if row.state in ENDED])
    ordered = sorted(ended, key=_merit)
    return [
        replace(row, is_tied=row.state == "complete" and _are_alike(row.hits, ordered[0].hits))
        for row in ordered
    ]


def _merit(row: Row) -> tuple[bool, float, int]:
    value = row.expected.mean if row.expected else row.whole or 0.0
    return row.state != "complete", -value, int(row.trial)


def _judge(rows: list[Row]) -> list[Row]:
    """Return rows with what is to be expected of those that are complete, if all have hits."""
    complete = [row for row in rows if row.state == "complete"]
    if not complete or not all(row.hits and row.curve for row in complete):
        return rows
    seen = [row for row in rows if row.curve and row.state not in UNFAIR]
    where = places_of([row.values for row in seen])
    curves = [Curve(place, row.curve) for place, row in zip(where, seen, strict=True)]
    best = sorted(complete, key=lambda row: -(row.whole or 0.0))[:AGREEING]
    found = estimate(curves, len(complete[0].hits), agreement([row.hits for row in best]))
    by_run = {row.run_id: each for row, each in zip(seen, found, strict=True)}
    return [
        replace(row, expected=by_run[row.run_id]) if row.state == "complete" else row
        for row in rows
    ]


def agreement(hits: Sequence[tuple[bool, ...]]) -> float:
    """Return how far models are right on the same utterances: the mean correlation of their hits,
    in [0, 1].
    """
    values = [np.corrcoef(one, other)[0, 1] for one, other in combinations(hits[:40], 2)
              if 0 < sum(one) < len(one) and 0 < sum(other) < len(other)]  # fmt: skip
    return float(np.clip(np.mean(values), 0, 1)) if values else 0.0


def _are_alike(one: tuple[bool, ...], other: tuple[bool, ...]) -> bool:
    """Tell whether two models cannot be told apart by the utterances that one of them alone gets
    right (McNemar's test, exact).
    """
    if not one or len(one) != len(other):
        return False
    return paired(one, other).pvalue > SURE


def best_runs(store: TrackingStore, study: str, count: int) -> list[str]:
    """Return the ids of a study's best complete runs, best first.

    Raises UserError when there are fewer.
    """
    rows = [row for row in ranked(store, study) if row.state == "complete"]
    if len(rows) < count:
        raise UserError(
            f"only complete trials can be used, but {count} are wanted and study {study!r} has "
            f"{len(rows)}; run search.py on it first"
        )
    return [row.run_id for row in rows[:count]]


def expectations(store: TrackingStore, study: str) -> dict[int, float]:
    """Return what a study's complete trials are ranked by, by number."""
    return {
        int(row.trial): row.expected.mean if row.expected else row.whole or 0.0
        for row in ranked(store, study)
        if row.state == "complete"
    }


def table(rows: list[Row], best: int) -> str:
    """Return the best rows and the homework's points as text, with the rank of each.

    A preset's name stands below it, so that a line has fewer than 80 characters.
    """
    lines = [
        f"{'rank':>4}  {'trial':>5}  {'point':<20} {'expected':>10} {'whole':>6} {'crops':>6} "
        f"{'parameters':>10} {'seconds':>8}"
    ]
    for rank, row in enumerate(rows, start=1):
        if rank <= best or row.preset:
            expected = format_accuracy(row.expected.mean if row.expected else None)
            rescue = f"rescue of #{row.rescue_of}" if row.rescue_of else ""
            lines.append(
                f"{1 if row.is_tied else rank:>4}  {'#' + row.trial:>5}  {row.point:<20} "
                f"{expected if row.state == 'complete' else row.state:>10} "
                f"{format_accuracy(row.whole):>6} {format_accuracy(row.crops):>6} "
                f"{row.parameters:>10,} {row.seconds:>8.1f}"
            )
            if note := " ".join(word for word in (row.preset, rescue) if word):
                lines.append(f"{'':<13}{note}")
    return "\n".join(lines)


def describe_unfair(rows: list[Row]) -> str:
    """Return a line for each trial whose end says nothing of its architecture; nothing where there
    is none.
    """
    ends = sorted((row for row in rows if row.state in UNFAIR), key=lambda row: int(row.trial))
    rescued = {row.rescue_of: row.trial for row in rows if row.rescue_of}
    return "\n".join(
        f"#{row.trial} {row.point} {row.state}: {row.reason}"
        + (f"; tried again as #{rescued[row.trial]}" if row.trial in rescued else "")
        for row in ends
    )


def _row(run: Run, store: TrackingStore) -> Row:
    tags, metrics, params = run.data.tags, run.data.metrics, run.data.params
    values = {name: _parse(params[name]) for name in TrialConfig().to_dict() if name in params}
    steps = float(values.get("steps", 1))
    return Row(
        run_id=run.info.run_id,
        trial=tags.get(names.TRIAL, "0"),
        point=tags.get(names.POINT, ""),
        state=tags.get(names.STATE, ""),
        preset=tags.get(names.PRESET, ""),
        replicate=tags.get(names.REPLICATE, ""),
        reason=tags.get(names.REASON, ""),
        rescue_of=tags.get(names.RESCUE_OF, ""),
        whole=metrics.get(names.BEST_WHOLE),
        crops=metrics.get(names.BEST_CROPS),
        parameters=int(metrics.get(names.PARAMETERS, 0)),
        seconds=metrics.get(names.SECONDS, 0.0),
        values=values,
        curve=tuple((step / steps, value) for step, value in store.curve(run.info.run_id)),
        hits=read_hits(tags.get(names.HITS, "")),
    )


def read_hits(text: str) -> tuple[bool, ...]:
    """Return a run's hits; none of a run that lacks them."""
    with contextlib.suppress(ValueError):
        return tuple(hits_of(text))
    return ()


def _parse(text: str) -> int | float | str:
    """Return what a run's parameter says: a number or a truth value if it is one."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
