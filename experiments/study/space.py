"""The only file with ranges: named search spaces, and the homework's points in them."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from speaker.common.errors import UserError
from speaker.config import ACTIVATIONS, TrialConfig
from speaker.model.classifier import count_operations


@dataclass(frozen=True)
class Space:
    """Which fields of TrialConfig a study varies, and over what; every combination is legal.

    Raises UserError when some d_model is not divisible by some nhead.
    """

    name: str
    choices: dict[str, tuple[Any, ...]]
    integers: dict[str, tuple[int, int]] = field(default_factory=dict)  # both ends included
    # On a logarithmic scale.
    log_floats: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for d_model in self.choices.get("d_model", ()):
            for nhead in self.choices.get("nhead", ()):
                if d_model % nhead:
                    raise UserError(
                        f"in a space every nhead must divide every d_model, but in {self.name!r} "
                        f"{nhead} does not divide {d_model}; drop one of the two"
                    )

    def sample(self, trial: optuna.trial.Trial, base: TrialConfig) -> TrialConfig:
        """Return the point of a trial: its sampled values over those of `base`."""
        values: dict[str, Any] = {}
        for name, choices in self.choices.items():
            values[name] = trial.suggest_categorical(name, choices)
        for name, (lowest, highest) in self.integers.items():
            values[name] = trial.suggest_int(name, lowest, highest)
        for name, (low, high) in self.log_floats.items():
            values[name] = trial.suggest_float(name, low, high, log=True)
        return base.replace(**values)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return each field's range as `sample` asks Optuna for it."""
        return {
            **{name: CategoricalDistribution(values) for name, values in self.choices.items()},
            **{name: IntDistribution(low, high) for name, (low, high) in self.integers.items()},
            **{
                name: FloatDistribution(low, high, log=True)
                for name, (low, high) in self.log_floats.items()
            },
        }

    def combinations(self) -> list[dict[str, Any]]:
        """Return every combination of the values that can be counted."""
        counted = {
            **self.choices,
            **{name: range(low, high + 1) for name, (low, high) in self.integers.items()},
        }
        return [
            dict(zip(counted, values, strict=True))
            for values in itertools.product(*counted.values())
        ]

    def points(self, base: TrialConfig) -> list[TrialConfig]:
        """Return every combination of the values that can be counted, over those of `base`,
        smallest models first.
        """
        points = [base.replace(**values) for values in self.combinations()]
        return sorted(points, key=count_operations)

    def definition(self) -> dict[str, str]:
        """Return each field's range in words; two spaces are the same when these are."""
        return {
            **{
                name: "one of " + ", ".join(map(str, choices))
                for name, choices in self.choices.items()
            },
            **{
                name: f"integer from {low} to {high}" for name, (low, high) in self.integers.items()
            },
            **{
                name: f"from {low:g} to {high:g}, log"
                for name, (low, high) in self.log_floats.items()
            },
        }


HOMEWORK = Space(
    "homework",
    choices={"d_model": (80, 128, 256, 512), "nhead": (1, 2, 4, 8, 16), "activation": ACTIVATIONS},
    integers={"num_layers": (1, 6)},
)
WIDE = Space(
    "wide",
    choices={**HOMEWORK.choices, "norm_first": (False, True), "dropout": (0.0, 0.1, 0.2)},
    integers=HOMEWORK.integers,
    log_floats={"lr": (1e-4, 3e-3), "weight_decay": (1e-3, 1e-1)},
)
SPACES = {space.name: space for space in (HOMEWORK, WIDE)}


def find_space(name: str) -> Space:
    """Return a space by name. Raises UserError for an unknown one."""
    if name not in SPACES:
        raise UserError(f"--space must be one of {', '.join(SPACES)}, but got {name!r}")
    return SPACES[name]
