"""A race of finalists on fresh seeds: who is still in it, and what the best of them is worth."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import mean, variance
from typing import Generic, TypeVar

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from experiments.proposals.curves import Estimate

Point = TypeVar("Point", bound=Hashable)
Scores = Mapping[Point, Mapping[int, float]]  # accuracies by point and seed

BEHIND = 0.95  # how sure it must be that a point is behind, before it leaves


@dataclass(frozen=True)
class Winner(Generic[Point]):
    """The best point of a race, and the accuracy to expect of its models on new utterances."""

    point: Point
    expected: Estimate


def still_racing(scores: Scores[Point]) -> list[Point]:
    """Return the points that may still be the best, in the order given.

    Seed by seed, from the second on, those leave that are behind the best so far by more than luck
    explains (one-sided t-test with the pooled residuals of points and seeds, as in Maron and Moore
    1994, "Hoeffding races"). While a score is missing, nobody leaves.
    """
    racing = list(scores)
    seeds = sorted(set().union(*scores.values())) if scores else []
    for count in range(2, len(seeds) + 1):
        if len(racing) == 1 or not all(set(seeds[:count]) <= set(scores[each]) for each in racing):
            break
        table = np.array([[scores[each][seed] for seed in seeds[:count]] for each in racing])
        means = table.mean(1)
        residuals = table - means[:, None] - table.mean(0) + table.mean()
        freedom = (len(racing) - 1) * (count - 1)
        deviation = math.sqrt(float((residuals**2).sum()) / freedom * 2 / count)
        margin = float(student_t.ppf(BEHIND, freedom)) * deviation
        racing = [each for each, value in zip(racing, means, strict=True)
                  if value >= means.max() - margin]  # fmt: skip
    return racing


def winner(scores: Scores[Point], utterances: int, agreement: float) -> Winner[Point]:
    """Return the best of the points that are still racing, with at least one score each.

    Its own mean would flatter, as it was chosen by that: so it is drawn to the mean of all of them,
    by as much of their differences as luck explains (James and Stein 1961). `utterances` and
    `agreement` are those of `CurveModel.trials`.
    """
    racing = still_racing(scores)
    seeds = sorted(set.intersection(*(set(scores[each]) for each in racing)))
    means = {each: mean(scores[each][seed] for seed in seeds) for each in racing}
    best, center = max(racing, key=means.__getitem__), mean(means.values())
    luck = center * (1 - center) / utterances
    spreads = [variance(each.values()) for each in scores.values() if len(each) > 1]
    of_mean = (mean(spreads) if spreads else luck) / len(seeds)
    apart = variance(means.values()) if len(means) > 1 else math.inf
    real = max(0.0, 1 - of_mean / apart) if apart else 0.0
    expected = center + real * (means[best] - center)
    freedom = sum(len(each) - 1 for each in scores.values())
    wider = float(student_t.ppf(BEHIND, freedom) / norm.ppf(BEHIND)) if freedom else 1.0
    return Winner(best, Estimate(expected, math.sqrt(of_mean * wider**2 + agreement * luck)))
