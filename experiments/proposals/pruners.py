"""Which trials are stopped early: by name, for trials of so many steps."""

from collections.abc import Callable

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)

REDUCTION = 3  # of the trials that reach a rung, one in so many goes on to the next

# Fractions of the budget before which no trial is stopped.
EARLIEST = {"halving": 1 / 5, "median": 1 / 3, "hyperband": 1 / 3, "none": 1.0}

PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    # Asynchronous successive halving (Li et al. 2020): rungs at a fifth and three fifths.
    "halving": lambda steps: SuccessiveHalvingPruner(max(1, steps // 5), REDUCTION, 0),
    # The others stop no trial in its first third.
    "median": lambda steps: MedianPruner(n_startup_trials=10, n_warmup_steps=steps // 3),
    "hyperband": lambda steps: HyperbandPruner(min_resource=max(1, steps // 3), max_resource=steps),
    "none": lambda _steps: NopPruner(),
}
