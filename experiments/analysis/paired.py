"""Two models on the same utterances: how far they differ, and whether that is more than luck."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr
from scipy.stats import binomtest

INTERVAL = 0.9  # of a difference; it leaves out 0 exactly where McNemar's test says p < 0.1


@dataclass(frozen=True)
class Paired:
    """Two models on `count` utterances."""

    count: int
    gained: int  # utterances that only the first tells right
    lost: int  # that only the other does

    @property
    def difference(self) -> float:
        """The first one's accuracy less the other's."""
        return (self.gained - self.lost) / self.count

    @property
    def pvalue(self) -> float:
        """How often luck alone makes two equal models so different: McNemar's test, exact.

        It is twice the binomial distribution's tail: if it is luck, both are as likely to be right
        alone.
        """
        apart = self.gained + self.lost
        return min(1.0, 2 * float(bdtr(min(self.gained, self.lost), apart, 0.5))) if apart else 1.0

    def interval(self) -> tuple[float, float]:
        """Return the 90 % interval of the difference, the one that belongs to the test: that of the
        share of the utterances told apart on which the first is right (Clopper and Pearson 1934).
        """
        if not (apart := self.gained + self.lost):
            return 0.0, 0.0
        bounds = binomtest(self.gained, apart).proportion_ci(INTERVAL, method="exact")
        low, high = ((2 * bound - 1) * apart / self.count for bound in (bounds.low, bounds.high))
        return float(low), float(high)


def compare_hits(one: Sequence[bool], other: Sequence[bool]) -> Paired | None:
    """Compare two models by their hits; None where these are missing, or of other utterances."""
    if not one or len(one) != len(other):
        return None
    mine, theirs = (np.frombuffer(bytes(hits), dtype=bool) for hits in (one, other))
    return Paired(len(one), int((mine & ~theirs).sum()), int((theirs & ~mine).sum()))
