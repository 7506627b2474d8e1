"""Which point is tried next: samplers by name, from a seed."""

from collections.abc import Callable

from optuna.samplers import BaseSampler, RandomSampler, TPESampler

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
