"""One model's hits in parts: by the length of the utterances, by speaker, and by who was confused
with whom.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

PARTS = 4  # of the utterances by their length, with equally many in each


@dataclass(frozen=True)
class Part:
    """Some validation utterances, and how many of them were told right."""

    name: str
    right: int
    count: int

    @property
    def accuracy(self) -> float:
        """The share told right."""
        return self.right / self.count

    def interval(self) -> tuple[float, float]:
        """Return the 90 % interval of the accuracy (Wilson 1927)."""
        bounds = binomtest(self.right, self.count).proportion_ci(0.9, method="wilson")
        return float(bounds.low), float(bounds.high)


@dataclass(frozen=True)
class Confusion:
    """A speaker who was taken for another one, in so many of the speaker's utterances."""

    speaker: str
    predicted: str
    times: int
    count: int


def whole(hits: Sequence[bool]) -> Part:
    """Return all utterances as one part."""
    return Part("all", sum(hits), len(hits))


def by_length(hits: Sequence[bool], frames: Sequence[int]) -> list[Part]:
    """Return quarters of the utterances, the shortest first, named by their numbers of frames."""
    order = np.argsort(np.asarray(frames), kind="stable")
    quarters = [quarter for quarter in np.array_split(order, PARTS) if len(quarter)]
    return [
        Part(
            f"{frames[quarter[0]]:,} to {frames[quarter[-1]]:,}",
            sum(hits[row] for row in quarter),
            len(quarter),
        )
        for quarter in quarters
    ]


def by_speaker(hits: Sequence[bool], speakers: Sequence[str]) -> list[Part]:
    """Return a part a speaker, the one told right least often first."""
    right: dict[str, list[bool]] = {}
    for hit, speaker in zip(hits, speakers, strict=True):
        right.setdefault(speaker, []).append(hit)
    parts = [Part(speaker, sum(values), len(values)) for speaker, values in right.items()]
    return sorted(parts, key=lambda part: (part.accuracy, -part.count, part.name))


def confusions(speakers: Sequence[str], predicted: Sequence[str]) -> list[Confusion]:
    """Return who was taken for whom, the most frequent first."""
    counts = Counter(speakers)
    wrong = Counter(pair for pair in zip(speakers, predicted, strict=True) if pair[0] != pair[1])
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(*pair, times, counts[pair[0]]) for pair, times in ordered]
