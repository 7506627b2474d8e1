"""Finalists trained again on fresh seeds: which is best, without the luck of having been chosen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.stats import t as student_t

from experiments.analysis.leaderboard import Row


@dataclass(frozen=True)
class Confirmed:
    """A point's accuracies on whole utterances, one a seed, against those of the best point."""

    point: str
    values: tuple[float, ...]
    difference: float  # mean of the best's less this one's, seed by seed
    half_width: float  # of its 90 % interval; nan of one seed

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return mean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds; nan of one."""
        return stdev(self.values) if len(self.values) > 1 else math.nan


def confirm(rows: Sequence[Row]) -> list[Confirmed]:
    """Return the points of a confirmation's trials, the best first, over the seeds on which all
    of them are complete.
    """
    by_point: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.state == "complete" and row.whole is not None and row.replicate:
            by_point.setdefault(row.point, {})[row.replicate] = row.whole
    shared = sorted(set.intersection(*map(set, by_point.values()))) if by_point else []
    if not shared:
        return []
    values = {point: tuple(seeds[seed] for seed in shared) for point, seeds in by_point.items()}
    return _against_best(values)


def _against_best(values: Mapping[str, tuple[float, ...]]) -> list[Confirmed]:
    order = sorted(values, key=lambda point: -mean(values[point]))
    best = values[order[0]]
    found = []
    for point in order:
        gaps = [ours - theirs for ours, theirs in zip(best, values[point], strict=True)]
        width = math.nan
        if len(gaps) > 1:
            quantile = float(student_t.ppf(0.95, len(gaps) - 1))
            width = quantile * stdev(gaps) / math.sqrt(len(gaps))
        found.append(Confirmed(point, values[point], mean(gaps), width))
    return found


def describe_confirmation(found: Sequence[Confirmed]) -> str:
    """Return a table of the points, and what it means."""
    seeds = len(found[0].values)
    head = f"{'point':<26} {'mean':>6} {'spread':>7}  behind the best, with its 90 % interval"
    lines = [head]
    for each in found:
        behind = "best" if each is found[0] else f"{each.difference:.4f} +- {each.half_width:.4f}"
        lines.append(f"{each.point:<26} {each.mean:>6.4f} {each.spread:>7.4f}  {behind}")
    tied = [each.point for each in found[1:] if not each.difference > each.half_width]
    verdict = f"{found[0].point} is best of {len(found)} on {seeds} seeds"
    if tied:
        verdict += f", and {' and '.join(tied)} cannot be told from it"
    lines.append(f"{verdict}.")
    return "\n".join(lines)
