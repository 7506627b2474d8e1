"""Two models on the same utterances: whether these can tell one from the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr


@dataclass(frozen=True)
class Paired:
    """How many utterances only the first, and only the second, of two models tells right, and how
    often luck alone makes them so unequal (McNemar's test, exact).
    """

    first: int
    second: int
    p: float


def compare_hits(one: Sequence[bool], other: Sequence[bool]) -> Paired | None:
    """Compare two models by their hits; None where these are missing, or of other utterances."""
    if not one or len(one) != len(other):
        return None
    ours, theirs = (np.frombuffer(bytes(hits), dtype=bool) for hits in (one, other))
    first, second = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    # Twice the binomial distribution's tail: both are as likely to be right alone, if it is luck.
    tail = float(bdtr(min(first, second), first + second, 0.5)) if first + second else 1.0
    return Paired(first, second, min(1.0, 2 * tail))
