"""How a study's page says numbers, times, trials and lists."""

import math

from experiments.analysis.leaderboard import Row

ENDS = {
    "complete": "complete",
    "pruned": "stopped early",
    "collapsed": "collapsed",
    "infeasible": "cannot be trained",
    "failed": "failed",
}
MAX_NAMED = 6


def number(value: float | None) -> str:
    """Return an accuracy as sentences show it."""
    return "-" if value is None else f"{value:.3f}"


def between(bounds: tuple[float, float]) -> str:
    """Return an interval of accuracies."""
    return f"{number(max(0.0, bounds[0]))} to {number(min(1.0, bounds[1]))}"


def behind(difference: float, half_width: float) -> str:
    """Return how far a point is behind, with its interval where several seeds give one."""
    if math.isnan(difference):
        return "-"
    return f"{difference:.3f}" if math.isnan(half_width) else f"{difference:.3f} ± {half_width:.3f}"


def duration(seconds: float) -> str:
    """Return a time as a person says it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def name(row: Row) -> str:
    """Return a trial as sentences call it."""
    return f"#{row.trial} ({row.point})"


def listed(words: list[str], most: int = MAX_NAMED) -> str:
    """Return the first words of a list, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def many(count: int, noun: str) -> str:
    """Return a count and its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
