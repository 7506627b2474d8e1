"""Which trials are stopped early: by name, for trials of so many steps.

Optuna's successive halving notes a rung, answers whether a trial stops there, and does not answer
again: of a trial that was killed before it was ended it would say that it may go on. Ours judges
the last report as often as it is asked.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

REDUCTION = 3  # of the trials that reach a rung, one in so many goes on to the next

# Fractions of the budget before which no trial is stopped.
EARLIEST = {"halving": 1 / 5, "median": 1 / 3, "hyperband": 1 / 3, "none": 1.0}


@dataclass(frozen=True)
class _Before:
    """What halving looks at of a study, as it was before one trial's last report was judged."""

    study: Study
    trial: FrozenTrial

    @property
    def direction(self) -> StudyDirection:
        return self.study.direction

    @property
    def _storage(self) -> BaseStorage:
        return self.study._storage

    def get_trials(self, deepcopy: bool) -> list[FrozenTrial]:
        found = self.study.get_trials(deepcopy=deepcopy)
        return [self.trial if each.number == self.trial.number else each for each in found]


class Halving(SuccessiveHalvingPruner):
    """Successive halving that judges a trial's last report again whenever it is asked."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether a trial is to stop at its last report."""
        earlier = sorted(trial.intermediate_values)[:-1]
        passed = self._rungs(earlier[-1] if earlier else 0)
        kept = {f"completed_rung_{number}" for number in range(passed)}
        before = copy.copy(trial)
        before.system_attrs = {
            name: value
            for name, value in trial.system_attrs.items()
            if name in kept or not name.startswith("completed_rung_")
        }
        return super().prune(_Before(study, before), before)  # type: ignore[arg-type]

    def _rungs(self, step: int) -> int:
        """Return how many rungs there are up to a step."""
        count, first = (
            0,
            (self._min_resource or 1) * (self._reduction_factor**self._min_early_stopping_rate),
        )
        while first * self._reduction_factor**count <= step:
            count += 1
        return count


class Hyperband(HyperbandPruner):
    """Hyperband whose brackets judge a trial's last report again whenever they are asked."""

    def _try_initialization(self, study: Study) -> None:
        super()._try_initialization(study)
        self._pruners = [
            Halving(each._min_resource or 1, self._reduction_factor, each._min_early_stopping_rate)
            for each in self._pruners
        ]


PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    # Asynchronous successive halving (Li et al. 2020): rungs at a fifth and three fifths.
    "halving": lambda steps: Halving(max(1, steps // 5), REDUCTION, 0),
    # The others stop no trial in its first third.
    "median": lambda steps: MedianPruner(n_startup_trials=10, n_warmup_steps=steps // 3),
    "hyperband": lambda steps: Hyperband(min_resource=max(1, steps // 3), max_resource=steps),
    "none": lambda _steps: NopPruner(),
}
