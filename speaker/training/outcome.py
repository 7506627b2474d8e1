"""How a trial ends."""

from enum import StrEnum


class Outcome(StrEnum):
    """How a trial ends.

    A training ends in one of the first five; the last is a run's that can be resumed.
    """

    COMPLETE = "complete"
    PRUNED = "pruned"  # stopped by the search
    COLLAPSED = "collapsed"  # it learns nothing: see collapse.py
    INFEASIBLE = "infeasible"  # the point does not fit into memory
    FAILED = "failed"  # the point cannot be trained for another reason: a GPU cannot do it, say
    INTERRUPTED = "interrupted"  # stopped by the user or by something that is no fault of the point
