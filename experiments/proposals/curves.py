"""A model of all learning curves of a study: what each trained model would score on new utterances.

The best of many noisy accuracies flatters. A Gaussian process over points and steps (in the manner
of Swersky, Snoek and Adams 2014, "Freeze-thaw Bayesian optimization") takes an accuracy apart:

    accuracy(trial, step) = level(step) + growth(step) point(trial's point, step)
                            + trial(trial, step) + noise

where growth is the mean accuracy of the complete trials at that step over that at the end: points
differ little while all are near chance. So a value is believed as far as its neighbours in the
space and its own curve bear it out. What is left of a trial's own part is shrunk once more: of its
variance, the validation part's size explains a share that is luck.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.proposals.kernel import JITTER, Hyper, Rows, covariance_of, fit_kernel

MAX_LEFT_OUT = 60  # trials
MIN_GROWTH = 0.02
MIN_SEED_VARIANCE = 0.02**2  # of one point's accuracy: seeds differ by as much at least
MAX_ROWS = 1_500  # of all curves: time grows with the cube; beyond, early values are left out


@dataclass(frozen=True)
class Curve:
    """What one trial showed: its place in the space, each coordinate in [0, 1], and its accuracies
    by the fraction of the budget that it had trained.
    """

    place: tuple[float, ...]
    values: tuple[tuple[float, float], ...]  # (fraction, accuracy), at least one


@dataclass(frozen=True)
class Estimate:
    """An accuracy on new utterances of the same speakers: its mean and standard deviation."""

    mean: float
    deviation: float

    def interval(self) -> tuple[float, float]:
        """Return the bounds that hold it nine times out of ten."""
        return self.mean - 1.645 * self.deviation, self.mean + 1.645 * self.deviation


@contextlib.contextmanager
def _in_one_thread() -> Iterator[None]:
    """Compute with one thread: so small matrices lose by more, tenfold where others compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class CurveModel:
    """The Gaussian process of a study's learning curves, fitted."""

    hyper: Hyper
    rows: Rows
    values: Tensor  # (n,): accuracies less their mean
    center: float  # that mean
    factor: Tensor  # (n, n): Cholesky's, of the covariance with noise

    @_in_one_thread()
    def trials(self, utterances: int, agreement: float = 0.0) -> list[Estimate]:
        """Return what each trial's model would score at the whole budget.

        `utterances` is the size of the validation part. `agreement` is the correlation of two
        models' hits on it: as much of its luck is shared by all models, and cannot be seen in
        their values.
        """
        hyper, owners = self.hyper, self.rows.owners
        firsts = [int((owners == owner).nonzero()[0]) for owner in owners.unique()]
        ends = _ends(self.rows.places[firsts], owners.unique())
        luck = max(self.center * (1 - self.center), 0.0) / utterances
        trial = float(hyper.trial)
        real = min(1.0, max(trial - (1 - agreement) * luck, MIN_SEED_VARIANCE) / trial)
        shared = covariance_of(hyper, ends, self.rows, trial=0.0)
        own = covariance_of(hyper, ends, self.rows) - shared
        means, explained = self._predict(shared + real * own)
        prior = hyper.level + hyper.point + real * hyper.trial
        surprise = _surprise(torch.cholesky_inverse(self.factor), owners, self.values)
        variance = (prior - explained).clamp(min=0) * surprise + agreement * luck
        return [
            Estimate(float(value), math.sqrt(float(each)))
            for value, each in zip(means.clamp(0, 1), variance, strict=True)
        ]

    def _predict(self, cross: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means at rows of which `cross` (m, n) is the covariance with what was
        measured, and the variances (m,) that this explains.
        """
        weights = torch.cholesky_solve(self.values[:, None], self.factor)
        solved = torch.linalg.solve_triangular(self.factor, cross.T, upper=False)
        return self.center + (cross @ weights)[:, 0], solved.square().sum(0)


@_in_one_thread()
def fit(curves: Sequence[Curve]) -> CurveModel:
    """Return the likeliest model of some trials' curves."""
    rows, values = _rows(curves)
    center = float(values.mean())
    hyper = fit_kernel(rows, values - center)
    covariance = covariance_of(hyper, rows, rows)
    covariance += torch.eye(len(values), dtype=torch.float64) * (hyper.noise + JITTER)
    return CurveModel(hyper, rows, values - center, center, torch.linalg.cholesky(covariance))


def estimate(curves: Sequence[Curve], utterances: int, agreement: float = 0.0) -> list[Estimate]:
    """Return what each trial's model would score at the whole budget: see `CurveModel.trials`."""
    return fit(curves).trials(utterances, agreement)


def places_of(points: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
    """Return where points lie in the space of the fields in which they differ, each in [0, 1]:
    numbers on a logarithmic scale where they span a factor of four, others a coordinate a value.
    """
    coordinates: list[list[float]] = []
    for name in points[0]:
        if not all(name in point for point in points):
            continue  # an older version knew no such field
        values = [point[name] for point in points]
        distinct = sorted(set(values))
        if len(distinct) == 1 or name == "seed":
            continue
        if any(isinstance(value, str) for value in values):
            coordinates += [[float(value == each) for value in values] for each in distinct]
            continue
        if distinct[0] > 0 and distinct[-1] >= 4 * distinct[0]:
            values, distinct = np.log(values).tolist(), np.log(distinct).tolist()
        spread = distinct[-1] - distinct[0]
        coordinates.append([(value - distinct[0]) / spread for value in values])
    return list(zip(*coordinates, strict=True)) if coordinates else [()] * len(points)


def _surprise(inverse: Tensor, owners: Tensor, values: Tensor) -> float:
    """Return by how much the model errs more than it believes, 1 at least: the mean square of its
    standardised errors, each trial's last value predicted from the other trials.

    The kernel was fitted to the same few values, which makes it too sure. `inverse` is that of
    their covariance.
    """
    squares = []
    weights = inverse @ values
    for owner in owners.unique()[:MAX_LEFT_OUT].tolist():
        own = (owners == owner).nonzero()[:, 0]
        if len(own) == len(owners):
            continue
        # What is left of values when they are predicted from all others (Dubrule 1983).
        left = torch.linalg.inv(inverse[own][:, own])
        squares.append(float((left[-1] @ weights[own]).square() / left[-1, -1]))
    return max(1.0, sum(squares) / max(1, len(squares)))


def _rows(curves: Sequence[Curve]) -> tuple[Rows, Tensor]:
    """Return all measurements, and their accuracies (n,)."""
    kept = [
        (owner, fraction, value)
        for owner, curve in enumerate(curves)
        for fraction, value in curve.values
    ]
    if len(kept) > MAX_ROWS:
        kept = [(owner, *curve.values[-1]) for owner, curve in enumerate(curves)]
    owners = torch.tensor([owner for owner, _, _ in kept])
    fractions = [fraction for _, fraction, _ in kept]
    values = torch.tensor([value for _, _, value in kept], dtype=torch.float64)
    growth = torch.tensor(_growth(curves, fractions), dtype=torch.float64)
    places = torch.tensor([curve.place for curve in curves], dtype=torch.float64)[owners]
    return Rows(torch.tensor(fractions, dtype=torch.float64), places, owners, growth), values


def _growth(curves: Sequence[Curve], fractions: list[float]) -> list[float]:
    """Return the mean accuracy of the complete trials at fractions of the budget, over that at the
    end; between what they measured, linearly.
    """
    complete = [dict(curve.values) for curve in curves if curve.values[-1][0] >= 1]
    if not complete or (end := mean(each[max(each)] for each in complete)) <= 0:
        return [1.0] * len(fractions)
    measured = sorted(set.intersection(*map(set, complete)))
    level = [mean(each[fraction] for each in complete) / end for fraction in measured]
    found = np.interp(fractions, measured, level)
    return [max(MIN_GROWTH, min(1.0, float(value))) for value in found]


def _ends(places: Tensor, owners: Tensor) -> Rows:
    """Return rows at the whole budget."""
    whole = torch.ones(len(owners), dtype=torch.float64)
    return Rows(whole, places, owners, whole)
