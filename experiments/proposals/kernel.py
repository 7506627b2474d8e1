"""The kernel of the model of learning curves, and how it is fitted to what was measured."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

FITTING_STEPS = 60
FITTING_GRADIENT, FITTING_CHANGE = 1e-2, 1e-6  # less than these, and the fit ends
MAX_FITTED = 300  # rows that the kernel is fitted to; all are predicted from
MAX_FITTED_VALUES = 5  # of one curve among them
BOUND = 4.0  # of the kernel's parameters: a factor of 55 from where they begin
FAILED_LOSS = 1e6
JITTER = 1e-6


@dataclass(frozen=True)
class Hyper:
    """Variances and lengths of the kernel."""

    level: Tensor
    point: Tensor
    trial: Tensor
    noise: Tensor
    step_length: Tensor
    lengths: Tensor  # one a coordinate


def _unpack(raw: Tensor) -> Hyper:
    level, point, trial, noise, step_length = raw[:5].exp()
    return Hyper(level, point, trial, noise, step_length, raw[5:].exp())


@dataclass(frozen=True)
class Rows:
    """Where values were measured: one row each."""

    fractions: Tensor  # (n,)
    places: Tensor  # (n, d)
    owners: Tensor  # (n,): which trial's
    growth: Tensor  # (n,): by how much points differ there, against the end

    def at(self, numbers: Tensor) -> "Rows":
        """Return some of the rows."""
        chosen = (self.fractions, self.places, self.owners, self.growth)
        return Rows(*(each[numbers] for each in chosen))


def covariance_of(
    hyper: Hyper, one: Rows, other: Rows, trial: Tensor | float | None = None
) -> Tensor:
    """Return the covariance of values at two sets of rows, without noise."""
    steps = (one.fractions[:, None] - other.fractions[None]).abs() / hyper.step_length
    apart = (one.places[:, None] - other.places[None]).square() @ hyper.lengths**-2
    near = _matern((apart + 1e-12).sqrt()) * one.growth[:, None] * other.growth[None]
    same = (one.owners[:, None] == other.owners[None]).double()
    own = hyper.trial if trial is None else trial
    return _matern(steps) * (hyper.level + hyper.point * near + own * same)


def _matern(distance: Tensor) -> Tensor:
    """Return the Matern kernel of smoothness 5/2."""
    scaled = math.sqrt(5) * distance
    return (1 + scaled + scaled.square() / 3) * (-scaled).exp()


def fit_kernel(rows: Rows, values: Tensor) -> Hyper:
    """Return the likeliest kernel under weak priors, by the marginal likelihood of the rows that
    `_fitted` chooses.
    """
    chosen = _fitted(rows.owners)
    rows, values = rows.at(chosen), values[chosen]
    center = torch.tensor(
        [0.03, 0.01, 0.001, 0.0005, 0.7, *[1.0] * rows.places.shape[1]], dtype=torch.float64
    ).log()

    def loss(raw: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        return _loss(torch.from_numpy(raw.copy()), center, rows, values)

    found = minimize(loss, center.numpy(), jac=True, method="L-BFGS-B", options={
        "maxiter": FITTING_STEPS, "gtol": FITTING_GRADIENT, "ftol": FITTING_CHANGE,
    })  # fmt: skip
    raw = torch.from_numpy(np.where(np.isfinite(found.x), found.x, center.numpy()))
    return _unpack(_bound(raw, center))


def _fitted(owners: Tensor) -> Tensor:
    """Return the numbers of the rows that a kernel is fitted to: all, unless there are too many;
    then those of evenly chosen trials, of each evenly chosen values and the last.
    """
    if len(owners) <= MAX_FITTED:
        return torch.arange(len(owners))
    thinned = [
        own[torch.linspace(0, len(own) - 1, min(len(own), MAX_FITTED_VALUES)).round().long()]
        for owner in owners.unique()
        for own in [(owners == owner).nonzero()[:, 0]]
    ]
    count = max(1, MAX_FITTED * len(thinned) // sum(map(len, thinned)))
    places = torch.linspace(0, len(thinned) - 1, min(len(thinned), count)).round().long()
    return torch.cat([thinned[place] for place in places])


def _loss(
    raw: Tensor, center: Tensor, rows: Rows, values: Tensor
) -> tuple[float, NDArray[np.float64]]:
    """Return how unlikely values are under a kernel, but for a constant, and the gradient.

    The gradient is that of the trace of the covariance with a constant matrix (Rasmussen and
    Williams 2006, equation 5.9): Cholesky's decomposition need not be differentiated.
    """
    raw = raw.requires_grad_()
    hyper = _unpack(_bound(raw, center))
    noise = torch.eye(len(values), dtype=torch.float64) * (hyper.noise + JITTER)
    covariance = covariance_of(hyper, rows, rows) + noise
    prior = 0.5 * (raw - center).square().sum()
    factor, failed = torch.linalg.cholesky_ex(covariance.detach())
    if failed:  # the line search has stepped too far
        prior.backward()
        total = FAILED_LOSS + float(prior.detach())
    else:
        inverse = torch.cholesky_inverse(factor)
        solved = inverse @ values
        (prior + 0.5 * ((inverse - torch.outer(solved, solved)) * covariance).sum()).backward()
        total = float(prior.detach() + 0.5 * values @ solved + factor.diagonal().log().sum())
    assert raw.grad is not None  # noqa: S101  # it was asked for
    return total, raw.grad.numpy()


def _bound(raw: Tensor, center: Tensor) -> Tensor:
    """Return the kernel's parameters, which do not leave a range around the center."""
    return center + BOUND * ((raw - center) / BOUND).tanh()
