"""Two models on the same utterances: whether these can tell one from the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


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
    ours, theirs = np.array(one), np.array(other)
    first, second = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    p = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    return Paired(first, second, p)
