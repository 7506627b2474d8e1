"""Two models on the same utterances: how far they differ, and whether that is more than luck."""

from collections.abc import Sequence
from dataclasses import dataclass

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
        """How often luck alone makes two equal models so different: McNemar's test, exact."""
        apart = self.gained + self.lost
        return float(binomtest(self.gained, apart).pvalue) if apart else 1.0

    def interval(self) -> tuple[float, float]:
        """Return the 90 % interval of the difference, the one that belongs to the test: that of the
        share of the utterances told apart on which the first is right (Clopper and Pearson 1934).
        """
        if not (apart := self.gained + self.lost):
            return 0.0, 0.0
        bounds = binomtest(self.gained, apart).proportion_ci(INTERVAL, method="exact")
        low, high = ((2 * bound - 1) * apart / self.count for bound in (bounds.low, bounds.high))
        return float(low), float(high)


def paired(one: Sequence[bool], other: Sequence[bool]) -> Paired:
    """Compare the hits of two models, utterance by utterance."""
    gained = sum(mine and not theirs for mine, theirs in zip(one, other, strict=True))
    lost = sum(theirs and not mine for mine, theirs in zip(one, other, strict=True))
    return Paired(len(one), gained, lost)
