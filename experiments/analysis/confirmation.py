"""Finalists trained again on fresh seeds: which is best, without the luck of having been chosen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from mlflow.entities import Run
from scipy.stats import t as student_t

from experiments.analysis.leaderboard import Row, agreement, ranked
from experiments.proposals.curves import Estimate
from experiments.proposals.finalists import FAILED
from experiments.proposals.race import winner
from experiments.tracking import names
from experiments.tracking.store import TrackingStore


@dataclass(frozen=True)
class Confirmed:
    """A point's accuracies on whole utterances, one a seed, against those of the best point on the
    same seeds.
    """

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


@dataclass(frozen=True)
class Confirmation:
    """The points of a race, the best first, and what to expect of the best on new utterances."""

    points: list[Confirmed]
    expected: Estimate


def confirm(rows: Sequence[Row]) -> Confirmation | None:
    """Return what a confirmation's ended trials say; None while none is complete. One that
    collapsed, say, counts as an accuracy of 0, as it did in the race.
    """
    rows = [row for row in rows if row.replicate]
    scores: dict[str, dict[int, float]] = {row.point: {} for row in rows}
    for row in rows:
        is_complete = row.state == "complete"
        scores[row.point][int(row.replicate)] = (row.whole or 0.0) if is_complete else FAILED
    if not scores or not any(row.state == "complete" for row in rows):
        return None
    hits = [row.hits for row in rows if row.hits and row.state == "complete"]
    best = winner(scores, len(hits[0]) if hits else 1, agreement(hits))
    others = sorted(
        (point for point in scores if point != best.point),
        key=lambda point: (-len(scores[point]), -mean(scores[point].values())),
    )
    return Confirmation(
        [_against(scores[best.point], point, scores[point]) for point in (best.point, *others)],
        best.expected,
    )


def confirmed_run(store: TrackingStore, study: str) -> tuple[str, str] | None:
    """Return the run with the best weights of the point that a study's latest confirmation found
    best, and that confirmation's name; None where there is no confirmation.
    """
    if (latest := latest_confirmation(store, study)) is None:
        return None
    name, rows, found = latest
    point = found.points[0].point
    mine = [row for row in rows if row.point == point and row.state == "complete"]
    return max(mine, key=lambda row: row.whole or 0.0).run_id, name


def latest_confirmation(
    store: TrackingStore, study: str
) -> tuple[str, list[Row], Confirmation] | None:
    """Return the name, the rows and the outcome of a study's latest confirmation; None where there
    is none with a complete trial.
    """
    condition = f"tags.{names.CONFIRMS} = '{study}' and tags.{names.KIND} = '{names.KIND_STUDY}'"
    for parent in reversed(store.runs(condition)):
        name = parent.data.tags[names.STUDY]
        rows = ranked(store, name)
        if found := confirm(rows):
            return name, rows, found
    return None


def confirmation_of(store: TrackingStore, run: Run) -> str:
    """Return in words how a run was confirmed: it is of a race, and of the point that won there.
    Nothing for any other.
    """
    study = run.data.tags.get(names.STUDY, "")
    parents = store.study_runs(study) if study else []
    if not parents or names.CONFIRMS not in parents[0].data.tags:
        return ""
    found = confirm(ranked(store, study))
    if found is None or found.points[0].point != run.data.tags.get(names.POINT):
        return ""
    best, seeds = found.points[0], len(found.points[0].values)
    plural = "s" * (seeds != 1)
    return (
        f"by {study}: best of {len(found.points)}, mean {best.mean:.4f} over {seeds} fresh "
        f"seed{plural}"
    )


def _against(best: dict[int, float], point: str, values: dict[int, float]) -> Confirmed:
    gaps = [best[seed] - value for seed, value in sorted(values.items()) if seed in best]
    width = math.nan
    if len(gaps) > 1:
        quantile = float(student_t.ppf(0.95, len(gaps) - 1))
        width = quantile * stdev(gaps) / math.sqrt(len(gaps))
    scores = tuple(value for _, value in sorted(values.items()))
    return Confirmed(point, scores, mean(gaps) if gaps else math.nan, width)


def describe_confirmation(found: Confirmation) -> str:
    """Return a table of the points, and what it means."""
    best, *others = found.points
    lines = [
        f"{'point':<24} {'seeds':>5} {'mean':>6} {'spread':>6}  behind the best, 90 % interval"
    ]
    for each in found.points:
        several = len(each.values) > 1
        width = f" +- {each.half_width:.4f}" if several else ", of one seed"
        behind = "best" if each is best else f"{each.difference:.4f}{width}"
        spread = f"{each.spread:.4f}" if several else "-"
        figures = f"{len(each.values):>5} {each.mean:>6.4f} {spread:>6}"
        lines.append(f"{each.point:<24} {figures}  {behind}")
    low, high = found.expected.interval()
    lines.append(
        f"{best.point} is best of {len(found.points)}. On new utterances expect "
        f"{found.expected.mean:.2f}, nine times"
    )
    lines.append(f"out of ten between {max(low, 0.0):.2f} and {min(high, 1.0):.2f}.")
    tied = [each.point for each in others if not each.difference > each.half_width]
    if tied:
        lines.append(f"It cannot be told from {' and '.join(tied)}.")
    return "\n".join(lines)
