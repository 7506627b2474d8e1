"""Which point is tried next: samplers by name, and the rule that none is tried twice by chance."""

from collections.abc import Callable, Mapping
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from experiments.proposals.space import Space
from speaker.common.seeding import permutation

ATTEMPTS = 20  # draws, before any untried point is taken
CANDIDATES = 10_000  # of which that is one, in a larger space

SAMPLERS: dict[str, Callable[[Space, int], BaseSampler]] = {
    "tpe": lambda _space, seed: TPESampler(seed=seed, multivariate=True),
    "gp": lambda _space, seed: GPSampler(seed=seed),
    "random": lambda _space, seed: RandomSampler(seed=seed),
}


class DistinctSampler(BaseSampler):
    """Proposes what another sampler does, but no point that another trial of the study has.

    A repeat is drawn again, up to ATTEMPTS times; then any untried point of the space is taken, and
    once there is none, the repeat: it is trained under its own seed. Trials that failed count as
    tried.
    """

    def __init__(self, inner: BaseSampler, space: Space, seed: int) -> None:
        self._inner, self._space, self._seed = inner, space, seed

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
        """Return a point that is not tried yet."""
        tried = {
            _key(other.params, search_space)
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and search_space.keys() <= other.params.keys()
        }
        for _ in range(ATTEMPTS):
            point = self._draw(study, trial, search_space)
            if _key(point, search_space) not in tried:
                return point
        if self._space.log_floats:
            return point
        every = self._space.draw(CANDIDATES, self._seed)
        untried = [values for values in every if _key(values, search_space) not in tried]
        if not untried:
            return point
        return untried[int(permutation(len(untried), self._seed, "untried")[0])]

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return one field's value: of a trial whose other fields are given."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass it on."""
        self._inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Pass it on."""
        self._inner.after_trial(study, trial, state, values)

    def _draw(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        relative = self._inner.infer_relative_search_space(study, trial)
        point = self._inner.sample_relative(study, trial, relative)
        return {
            name: point[name]
            if name in point
            else self._inner.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }


def make_sampler(name: str, space: Space, seed: int) -> BaseSampler:
    """Return a sampler by name for one trial, whose seed this is."""
    return DistinctSampler(SAMPLERS[name](space, seed), space, seed)


def _key(point: Mapping[str, Any], fields: Mapping[str, object]) -> tuple[Any, ...]:
    return tuple(point[name] for name in fields)
