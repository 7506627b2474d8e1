"""Rank the trials of a study by what they can be expected to score."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from mlflow.entities import Run

from experiments.analysis.paired import compare_hits
from experiments.proposals.curves import Curve, Estimate, estimate, places_of
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from speaker.common.cli import printable
from speaker.common.errors import UserError
from speaker.config import TrialConfig
from speaker.training.metrics import UTTERANCES_PER_S, hits_of


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
    rate: float | None = None  # whole utterances a second, at the last evaluation
    tags: dict[str, str] = field(default_factory=dict)  # of the run

    @property
    def prediction_ms(self) -> float:
        """Milliseconds of prediction an utterance; 0 where that was not measured."""
        return 1000 / self.rate if self.rate else 0.0


ENDED = ("complete", "pruned", "collapsed", "infeasible", "failed")
UNFAIR = ("collapsed", "infeasible")  # ends that say nothing of the architecture
SURE = 0.1  # a difference is one if luck alone makes such a one less often
AGREEING = 5  # of the best trials: they share more of the validation part's luck than others do


def ranked(store: TrackingStore, study: str) -> list[Row]:
    """Return a study's ended trials: the complete ones best first, then the others.

    The best is the one of which most is to be expected on new utterances (see curves.py); of runs
    that an older version made, the one that scored most on the validation part. A study has one
    protocol, so its accuracies may be ranked together. Raises UserError for an unknown study.
    """
    store.validate_study(study)
    return rank(read_rows(store, store.trial_runs(study)))


def validate_rankable(rows: Sequence[Row], study: str) -> None:
    """Raise UserError unless one of a study's ended trials is complete."""
    if any(row.state == "complete" for row in rows):
        return
    counts = Counter(row.state for row in rows)
    ends = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none has"
    reason = next((f"; the first because of: {row.reason}" for row in rows if row.reason), "")
    raise UserError(
        f"only complete trials can be ranked, but study {study!r} has none: of {len(rows)} that "
        f"ended {ends}{reason}; run search.py on it again"
    )


def rank(rows: Sequence[Row]) -> list[Row]:
    """Return the ended ones of a study's trials in the order of `ranked`."""
    return in_order(_judge([row for row in rows if row.state in ENDED]))


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Return trials of one corpus and protocol, the complete ones best first, then the others; it
    is marked which the utterances cannot tell from the first.
    """
    ordered = sorted(rows, key=_merit)
    return [replace(row, is_tied=_is_like(row, ordered[0])) for row in ordered]


def ranks(rows: Sequence[Row]) -> list[int | None]:
    """Return the ranks of ordered trials: all that cannot be told from the winner share the first
    one; those that are not complete have none.
    """
    return [
        (1 if row.is_tied else place) if row.state == "complete" else None
        for place, row in enumerate(rows, start=1)
    ]


def read_rows(store: TrackingStore, runs: Sequence[Run]) -> list[Row]:
    """Return what the runs of trials say, in their order."""
    curves = store.curves(runs)
    return [_row(run, curves[run.info.run_id]) for run in runs]


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


def _is_like(row: Row, winner: Row) -> bool:
    """Tell whether a complete trial cannot be told from the winner."""
    if row.state != "complete":
        return False
    paired = compare_hits(row.hits, winner.hits)
    return paired is not None and paired.pvalue > SURE


def seeds_of(rows: Sequence[Row]) -> list[int]:
    """Return of how many complete trials each trial's point is: they differ in the seed alone."""
    points = Counter(_point(row) for row in rows if row.state == "complete")
    return [points[_point(row)] for row in rows]


def _point(row: Row) -> tuple[str, frozenset[tuple[str, Any]]]:
    return row.point, frozenset(item for item in row.values.items() if item[0] != "seed")


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


def _row(run: Run, curve: Sequence[tuple[int, float]]) -> Row:
    tags = {name: printable(text) for name, text in run.data.tags.items()}
    metrics, params = run.data.metrics, run.data.params
    values = logged_values(params)
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
        curve=tuple((step / steps, value) for step, value in curve),
        hits=read_hits(tags.get(names.HITS, "")),
        rate=metrics.get(UTTERANCES_PER_S),
        tags=tags,
    )


def logged_values(params: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of the config that a run's params hold."""
    return {name: _parse(params[name]) for name in TrialConfig().to_dict() if name in params}


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
