"""The 90 % intervals of accuracies, in words and as fields."""

from experiments.proposals.curves import Estimate
from speaker.training.metrics import wilson

Bounds = tuple[float, float] | None


def measured_bounds(share: float | None, count: int) -> Bounds:
    """Return the interval of a share of so many utterances; None where either is not known."""
    if share is None or not count:
        return None
    low, high = wilson(share, count)
    return max(low, 0.0), min(high, 1.0)


def expected_bounds(expected: Estimate | None) -> Bounds:
    """Return the interval of what is expected, within [0, 1]."""
    if expected is None:
        return None
    low, high = expected.interval()
    return max(low, 0.0), min(high, 1.0)


def half_width(bounds: Bounds) -> str:
    """Return half the width of an interval as a table shows it."""
    return f"±{(bounds[1] - bounds[0]) / 2:.3f}".replace("±0.", "±.") if bounds else "-"


def bounded(name: str, value: float | None, bounds: Bounds) -> dict[str, float | None]:
    """Return a value and the ends of its interval as fields."""
    low, high = bounds or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
