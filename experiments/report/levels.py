"""The values of a study's parameters, in their own order, and how much each parameter mattered."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.analysis.leaderboard import Row
from speaker.config import NAMES, TrialConfig
from speaker.training.metrics import WIDE

MAX_LEVELS = 8  # values of a parameter that are shown one by one
MAX_FRACTIONS = 4  # of one that takes fractions
QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Importance:
    """The share of the differences in accuracy that go with one parameter alone, in [0, 1], and
    half the width of its 90 % interval (nan where it cannot be told).
    """

    name: str
    share: float
    half_width: float


def scored(rows: Iterable[Row]) -> list[Row]:
    """Return the complete rows with a score: those that had the same budget."""
    return [row for row in rows if row.state == "complete" and row.whole is not None]


def varied(rows: Iterable[Row]) -> list[str]:
    """Return the fields that take more than one value, in the config's order."""
    rows = list(rows)
    return [
        name
        for name in TrialConfig().to_dict()
        if name != "seed" and len({row.values[name] for row in rows if name in row.values}) > 1
    ]


def in_order(name: str, values: Iterable[Any]) -> list[Any]:
    """Return the different values of a field: numbers ascending, names as the config lists them."""
    known = NAMES.get(name, ())

    def place(value: Any) -> tuple[int, Any]:
        if isinstance(value, str):
            return (known.index(value) if value in known else len(known)), value
        return -1, value

    return sorted(set(values), key=place)


def is_continuous(name: str, rows: Sequence[Row]) -> bool:
    """Tell whether a field has too many numbers to show each by itself."""
    return are_many(row.values[name] for row in rows if name in row.values)


def are_many(values: Iterable[Any]) -> bool:
    """Tell whether values are too many numbers to show each by itself."""
    kinds = set(values)
    most = MAX_FRACTIONS if any(isinstance(value, float) for value in kinds) else MAX_LEVELS
    return len(kinds) > most and not any(isinstance(value, str) for value in kinds)


def groups(name: str, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return rows by the value of a field, in the values' order; by quarters of the trials where
    there are too many values.
    """
    rows = [row for row in rows if name in row.values]
    if is_continuous(name, rows):
        edges = np.quantile([row.values[name] for row in rows], QUARTERS)
        quarters: list[list[Row]] = [[] for _ in range(len(edges) + 1)]
        for row in rows:
            quarters[int(np.searchsorted(edges, row.values[name]))].append(row)
        return [(_span(name, quarter), quarter) for quarter in quarters if quarter]
    return [
        (shown(value), [row for row in rows if row.values[name] == value])
        for value in in_order(name, (row.values[name] for row in rows))
    ]


def shown(value: Any) -> str:
    """Return a value as a label."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def importances(rows: Sequence[Row]) -> list[Importance]:
    """Return the importance of each field that varies, the greatest first; those of which it cannot
    be told, with too few trials say, last and with a share of nan.
    """
    rows = scored(rows)
    found = [importance(name, rows) for name in varied(rows)]
    return sorted(found, key=lambda each: math.inf if math.isnan(each.share) else -each.share)


def importance(name: str, rows: Sequence[Row]) -> Importance:
    """Return how much of the variance of accuracy goes with a field's values: Kelley's epsilon
    squared (1935) of a one-way analysis of variance, which does not grow with the number of values
    by luck alone; its error is that of the jackknife (Tukey 1958).
    """
    parts = groups(name, scored(rows))
    codes = np.repeat(np.arange(len(parts)), [len(members) for _, members in parts])
    values = np.array([row.whole for _, members in parts for row in members], dtype=float)
    share = _epsilon(codes, values)
    without = np.array(
        [_epsilon(np.delete(codes, left), np.delete(values, left)) for left in range(len(values))]
    )
    half = math.nan
    if not math.isnan(share) and not np.isnan(without).any():
        half = WIDE * math.sqrt((len(values) - 1) * float(without.var()))
    return Importance(name, max(0.0, share) if not math.isnan(share) else math.nan, half)


def _epsilon(codes: "np.ndarray[Any, Any]", values: "np.ndarray[Any, Any]") -> float:
    """Return epsilon squared; nan where no group has two trials, or all score the same."""
    if not len(values):
        return math.nan
    counts = np.bincount(codes)
    sums = np.bincount(codes, weights=values)
    present = counts > 0
    groups_, spare = int(present.sum()), len(values) - int(present.sum())
    centred = values - values.mean()
    total = float(centred @ centred)
    if groups_ < 2 or spare < 1 or total < 1e-12:
        return math.nan
    within = float(values @ values) - float((sums[present] ** 2 / counts[present]).sum())
    return (total - within - (groups_ - 1) * max(within, 0.0) / spare) / total


def _span(name: str, rows: Sequence[Row]) -> str:
    values = [row.values[name] for row in rows]
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"
