"""Propose points by a model of all learning curves so far, those of stopped trials, too."""

import math
from typing import Any

import torch
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from torch import Tensor

from experiments.proposals.curves import Curve, fit, places_of
from experiments.proposals.space import Space

STARTUP = 10  # trials before the model is asked
CANDIDATES = 1_000  # of a space that has more points


class ModelSampler(BaseSampler):
    """Proposes the untried point of the highest expected improvement (Jones, Schonlau and Welch
    1998) over the best point so far, both as the Gaussian process of curves.py sees them.

    Optuna's own samplers model the last values alone; this one is told how far a trial had come,
    and takes a point that collapsed or does not fit for as bad as the worst.
    It keeps nothing between trials: the same trials and seed propose the same point.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self,
        study: Study,  # noqa: ARG002  # Optuna's names
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """Return the whole space: a point is proposed at once, not field by field."""
        return self._space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a point that is not tried yet; none, to be drawn at random, of the first trials
        and where all are tried.
        """
        others = [
            each
            for each in study.get_trials(deepcopy=False)
            if each.number != trial.number and search_space.keys() <= each.params.keys()
        ]
        seen = [each for each in others if each.intermediate_values or _is_broken(each)]
        tried = {tuple(each.params[name] for name in search_space) for each in others}
        untried = [
            point
            for point in self._space.draw(CANDIDATES, self._seed)
            if tuple(point[name] for name in search_space) not in tried
        ]
        if len(seen) < STARTUP or not untried:
            return {}
        every = places_of([*(each.params for each in seen), *untried])
        model = fit(_curves(seen, every[: len(seen)]))
        means, deviations = model.points(every)
        scores = expected_improvement(means, deviations, float(means[: len(seen)].max()))
        return untried[int(scores[len(seen) :].argmax())]

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return one field's value, at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def _curves(trials: list[FrozenTrial], places: list[tuple[float, ...]]) -> list[Curve]:
    """Return the curves of trials; of those that collapsed or do not fit, the worst end of all."""
    whole = max((max(each.intermediate_values, default=1) for each in trials), default=1)
    ends = [list(each.intermediate_values.values())[-1] for each in trials if not _is_broken(each)]
    worst = {whole: min(ends, default=0.0)}
    curves = []
    for trial, place in zip(trials, places, strict=True):
        values = worst if _is_broken(trial) else trial.intermediate_values
        rows = tuple((step / whole, value) for step, value in sorted(values.items()))
        curves.append(Curve(place, rows))
    return curves


def _is_broken(trial: FrozenTrial) -> bool:
    """Tell whether a trial broke a constraint: see trial.py."""
    return any(value > 0 for value in trial.constraints.values())


def expected_improvement(means: Tensor, deviations: Tensor, best: float) -> Tensor:
    """Return by how much each of some normal variables exceeds `best`, on average."""
    gain = means - best
    scaled = gain / deviations
    density = (-0.5 * scaled.square()).exp() / math.sqrt(2 * math.pi)
    return gain * torch.special.ndtr(scaled) + deviations * density
