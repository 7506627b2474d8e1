"""When a search starts no new trial: what can end it, and what the end of one is called."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from experiments.tracking.store import TrackingStore

MARGIN = 0.005  # of accuracy: an answer that is better by no more is not better

# What can be expected of a study's complete trials on new utterances, by number.
Expectations = Callable[[TrackingStore, str], Mapping[int, float]]


class Limit(StrEnum):
    """What ended a search, by its flag."""

    TRIALS = "--trials"
    TIMEOUT = "--timeout"
    PATIENCE = "--patience"
    BUDGET = "--budget"


def has_stalled(ended: Sequence[int], expected: Mapping[int, float], patience: int) -> bool:
    """Tell whether the last `patience` of the ended trials, by number, brought no better answer.

    The best of them is compared with the best of those before, both as what is known now has it: a
    lucky accuracy that has been seen through since then does not count as one that was not beaten.
    Without an answer before, there is nothing to be patient about.
    """
    order = sorted(ended)
    before = [expected[number] for number in order[:-patience] if number in expected]
    last = [expected[number] for number in order[-patience:] if number in expected]
    return bool(before) and max(last, default=0.0) <= max(before) + MARGIN
