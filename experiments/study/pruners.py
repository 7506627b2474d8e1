"""Which trials are stopped early: by name, for trials of so many steps."""

from collections.abc import Callable

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner

# None stops a trial in its first third.
PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "median": lambda steps: MedianPruner(n_startup_trials=10, n_warmup_steps=steps // 3),
    "hyperband": lambda steps: HyperbandPruner(min_resource=max(1, steps // 3), max_resource=steps),
    "none": lambda _steps: NopPruner(),
}
