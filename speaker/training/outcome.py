"""How a trial ends."""

from enum import StrEnum


class Outcome(StrEnum):
    """How a trial ends.

    A training ends in one of the first three; the last is a run's that can be resumed.
    """

    COMPLETE = "complete"
    PRUNED = "pruned"  # stopped by the search
    FAILED = "failed"  # the point cannot be trained: it diverged, say, or does not fit into memory
    INTERRUPTED = "interrupted"  # stopped by the user or by something that is no fault of the point
