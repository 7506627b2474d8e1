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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from torch import Tensor

FITTING_STEPS = 60
BOUND = 4.0  # of the kernel's parameters: a factor of 55 from where they begin
FAILED_LOSS = 1e6
JITTER = 1e-6
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


def estimate(curves: Sequence[Curve], utterances: int, agreement: float = 0.0) -> list[Estimate]:
    """Return what each trial's model would score at the whole budget.

    `utterances` is the size of the validation part. `agreement` is the correlation of two models'
    hits on it: as much of its luck is shared by all models, and cannot be seen in their values.
    """
    rows, values = _rows(curves)
    center = float(values.mean())
    hyper = _fit(rows, values - center)
    covariance = _covariance(hyper, rows, rows)
    covariance += torch.eye(len(values), dtype=torch.float64) * (hyper.noise + JITTER)
    factor = torch.linalg.cholesky(covariance)
    whole = torch.ones(len(curves), dtype=torch.float64)
    ends = _Rows(whole, places_of(curves), torch.arange(len(curves)), whole)
    weights = torch.cholesky_solve((values - center)[:, None], factor)

    luck = max(center * (1 - center), 0.0) / utterances
    trial = float(hyper.trial)
    real = min(1.0, max(trial - (1 - agreement) * luck, MIN_SEED_VARIANCE) / trial)
    shared = _covariance(hyper, ends, rows, trial=0.0)
    own = _covariance(hyper, ends, rows) - shared
    cross = shared + real * own
    means = center + (cross @ weights)[:, 0]
    prior = hyper.level + hyper.point + real * hyper.trial
    solved = torch.linalg.solve_triangular(factor, cross.T, upper=False)
    variance = (prior - solved.square().sum(0)).clamp(min=0)
    variance = variance * _surprise(covariance, rows.owners, values - center) + agreement * luck
    return [
        Estimate(float(value), math.sqrt(float(each)))
        for value, each in zip(means, variance, strict=True)
    ]


def _surprise(covariance: Tensor, owners: Tensor, values: Tensor) -> float:
    """Return by how much the model errs more than it believes, 1 at least: the mean square of its
    standardised errors, each trial's last value predicted from the other trials.

    The kernel was fitted to the same few values, which makes it too sure.
    """
    squares = []
    for owner in owners.unique()[:MAX_LEFT_OUT].tolist():
        others = owners != owner
        if not bool(others.any()):
            continue
        last = int((owners == owner).nonzero()[-1])
        factor = torch.linalg.cholesky(covariance[others][:, others])
        cross = covariance[others, last][:, None]
        solved = torch.linalg.solve_triangular(
            factor, torch.cat((cross, values[others][:, None]), 1), upper=False
        )
        variance = covariance[last, last] - solved[:, 0].square().sum()
        error = values[last] - (solved[:, 0] * solved[:, 1]).sum()
        squares.append(float(error.square() / variance))
    return max(1.0, sum(squares) / max(1, len(squares)))


@dataclass(frozen=True)
class _Hyper:
    """Variances and lengths of the kernel."""

    level: Tensor
    point: Tensor
    trial: Tensor
    noise: Tensor
    step_length: Tensor
    lengths: Tensor  # one a coordinate


def _unpack(raw: Tensor) -> _Hyper:
    level, point, trial, noise, step_length = raw[:5].exp()
    return _Hyper(level, point, trial, noise, step_length, raw[5:].exp())


@dataclass(frozen=True)
class _Rows:
    """Where values were measured: one row each."""

    fractions: Tensor  # (n,)
    places: Tensor  # (n, d)
    owners: Tensor  # (n,): which trial's
    growth: Tensor  # (n,): by how much points differ there, against the end


def _rows(curves: Sequence[Curve]) -> tuple[_Rows, Tensor]:
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
    return _Rows(
        torch.tensor(fractions, dtype=torch.float64), places_of(curves)[owners], owners, growth
    ), values


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


def places_of(curves: Sequence[Curve]) -> Tensor:
    """Return the places of some curves, float64 (n, d)."""
    return torch.tensor([curve.place for curve in curves], dtype=torch.float64)


def _covariance(
    hyper: _Hyper, one: _Rows, other: _Rows, trial: Tensor | float | None = None
) -> Tensor:
    """Return the covariance of values at two sets of rows, without noise."""
    steps = (one.fractions[:, None] - other.fractions[None]).abs() / hyper.step_length
    apart = ((one.places[:, None] - other.places[None]) / hyper.lengths).square().sum(-1)
    near = _matern((apart + 1e-12).sqrt()) * one.growth[:, None] * other.growth[None]
    same = (one.owners[:, None] == other.owners[None]).double()
    own = hyper.trial if trial is None else trial
    return _matern(steps) * (hyper.level + hyper.point * near + own * same)


def _matern(distance: Tensor) -> Tensor:
    """Return the Matern kernel of smoothness 5/2."""
    scaled = math.sqrt(5) * distance
    return (1 + scaled + scaled.square() / 3) * (-scaled).exp()


def _fit(rows: _Rows, values: Tensor) -> _Hyper:
    """Return the likeliest kernel under weak priors, by the marginal likelihood."""
    center = torch.tensor(
        [0.03, 0.01, 0.001, 0.0005, 0.7, *[1.0] * rows.places.shape[1]], dtype=torch.float64
    ).log()
    raw = center.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [raw], lr=0.5, max_iter=FITTING_STEPS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        hyper = _unpack(center + BOUND * ((raw - center) / BOUND).tanh())
        covariance = _covariance(hyper, rows, rows)
        covariance = covariance + torch.eye(len(values), dtype=torch.float64) * (
            hyper.noise + JITTER
        )
        factor, failed = torch.linalg.cholesky_ex(covariance)
        total = 0.5 * (raw - center).square().sum()
        if failed:  # the line search has stepped too far
            total = total + FAILED_LOSS
        else:
            solved = torch.linalg.solve_triangular(factor, values[:, None], upper=False)
            total = total + 0.5 * solved.square().sum() + factor.diagonal().log().sum()
        total.backward()
        return total

    optimizer.step(loss)
    found = torch.where(raw.detach().isfinite(), raw.detach(), center)
    return _unpack(center + BOUND * ((found - center) / BOUND).tanh())
