"""The only file with ranges: named search spaces, and the homework's points in them."""

import itertools
import math
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from speaker.common.errors import UserError
from speaker.common.seeding import uniform
from speaker.config import ACTIVATIONS, HOMEWORK_BASELINE, TrialConfig
from speaker.model.classifier import count_operations

T = TypeVar("T")
# Which shapes there are to measure, and what a step of them costs; other fields do not matter.
SHAPES = (
    "d_model", "nhead", "num_layers", "activation", "dim_feedforward", "batch_size", "segment_len",
)  # fmt: skip


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

    def sample(self, trial: optuna.trial.BaseTrial, base: TrialConfig) -> TrialConfig:
        """Return the point of a trial: its sampled values over those of `base`."""
        values: dict[str, Any] = {}
        for name, choices in self.choices.items():
            values[name] = trial.suggest_categorical(name, choices)
        for name, (lowest, highest) in self.integers.items():
            values[name] = trial.suggest_int(name, lowest, highest)
        for name, (low, high) in self.log_floats.items():
            values[name] = trial.suggest_float(name, low, high, log=True)
        return base.replace(**values)

    def narrowed(self, fixed: Collection[str], choices: dict[str, tuple[Any, ...]]) -> "Space":
        """Return this space without some fields, and with these choices for others.

        Raises UserError for choices of a field that it does not vary, or outside of what it had.
        """
        for name, values in choices.items():
            if name in fixed or name not in self.distributions():
                raise UserError(
                    f"--choices must be of a field that the space {self.name!r} varies "
                    f"({', '.join(self.distributions())}), but got {name!r}; use --fix for others"
                )
            for value in values:
                if not self.holds({name: value}):
                    raise UserError(
                        f"--choices {name} must be within the space {self.name!r} "
                        f"({self.definition()[name]}), but got {value!r}; choose some of these"
                    )

        def kept(ranges: dict[str, T]) -> dict[str, T]:
            return {
                name: each
                for name, each in ranges.items()
                if name not in fixed and name not in choices
            }

        return Space(
            self.name, {**kept(self.choices), **choices}, kept(self.integers), kept(self.log_floats)
        )

    def holds(self, values: dict[str, Any]) -> bool:
        """Tell whether these fields' values lie in this space."""
        ranges = self.distributions()
        return all(
            value in self.choices[name]
            if name in self.choices
            else ranges[name].low <= value <= ranges[name].high  # type: ignore[attr-defined]
            for name, value in values.items()
        )

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

    def combinations(self, fields: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return every combination of the values that can be counted: of all fields or of some."""
        every = {
            **self.choices,
            **{name: range(low, high + 1) for name, (low, high) in self.integers.items()},
        }
        counted = {
            name: values for name, values in every.items() if fields is None or name in fields
        }
        return [
            dict(zip(counted, values, strict=True))
            for values in itertools.product(*counted.values())
        ]

    def draw(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Return every combination of a space that has no more than `count`, of a larger one so
        many points at random.
        """
        sizes = [*map(len, self.choices.values())]
        sizes += [high - low + 1 for low, high in self.integers.values()]
        if not self.log_floats and math.prod(sizes) <= count:
            return self.combinations()
        drawn: dict[str, list[Any]] = {}
        for name, choices in self.choices.items():
            shares = uniform(count, seed, "draw", name).tolist()
            drawn[name] = [choices[int(share * len(choices))] for share in shares]
        for name, (low, high) in self.integers.items():
            shares = uniform(count, seed, "draw", name).tolist()
            drawn[name] = [low + int(share * (high - low + 1)) for share in shares]
        for name, (smallest, largest) in self.log_floats.items():
            shares = uniform(count, seed, "draw", name).tolist()
            drawn[name] = [smallest * (largest / smallest) ** share for share in shares]
        return [
            dict(zip(drawn, values, strict=True)) for values in zip(*drawn.values(), strict=True)
        ]

    def points(self, base: TrialConfig) -> list[TrialConfig]:
        """Return every combination of the values that decide what a step costs, over those of
        `base`, smallest models first.
        """
        points = [base.replace(**values) for values in self.combinations(SHAPES)]
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
# The published points of this family of models: see REPRODUCED in presets.py.
REPRODUCE = Space(
    "reproduce",
    choices={
        "d_model": (80, 256),
        "num_layers": (1, 2, 3),
        "norm_first": (False, True),
        "lr": (1e-3, 3e-4),
    },
)
SPACES = {space.name: space for space in (HOMEWORK, WIDE)}
TRAINING = "training"


def training_space(base: TrialConfig, utterances: int) -> Space:
    """Return the homework's space and how its models are trained, around a base for a corpus of so
    many training utterances.

    Every combination is legal whatever the base's budget, and the base's own values are in it.
    """
    steps, batch, frames = base.steps, base.batch_size, base.segment_len
    return Space(
        TRAINING,
        choices={
            **HOMEWORK.choices,
            # Post-norm d256 L3 at 1e-3 is published to fall off a cliff where pre-norm does not.
            "norm_first": (False, True),
            # From a fiftieth to a fifth of the budget; the homework's is a seventieth.
            "warmup_steps": _distinct(base.warmup_steps, steps // 50, steps // 20, steps // 5),
            # The homework's 0.1; none, since 70,000 steps are but 44 epochs; and twice as much.
            "dropout": (0.0, 0.1, 0.2),
            # From half to four times the homework's 256; four times d_model is usual.
            "dim_feedforward": (128, 256, 512, 1024),
            # A step costs in proportion to both, so they stay within a factor of two.
            "batch_size": tuple(
                size for size in _distinct(batch // 2, batch, 2 * batch) if 1 <= size <= utterances
            ),
            "segment_len": tuple(
                length for length in _distinct(frames // 2, frames, 2 * frames) if length
            ),
        },
        integers=HOMEWORK.integers,
        # Around the homework's 1e-3: a tenth, and three times, above which deep models collapse.
        log_floats={"lr": (1e-4, 3e-3)},
    )


def _distinct(*values: int) -> tuple[int, ...]:
    return tuple(sorted(set(values)))


def find_space(
    name: str, base: TrialConfig = HOMEWORK_BASELINE, utterances: int = sys.maxsize
) -> Space:
    """Return a space by name, for a base and so many training utterances.

    Raises UserError for an unknown one.
    """
    if name == TRAINING:
        return training_space(base, utterances)
    if name not in SPACES:
        raise UserError(
            f"--space must be one of {', '.join((*SPACES, TRAINING))}, but got {name!r}"
        )
    return SPACES[name]


def parse_field(text: str) -> tuple[str, tuple[Any, ...]]:
    """Return the field and the values of "name=value" or "name=value,value".

    Raises UserError for what is no field, and for a value of another type than the field's.
    """
    name, equals, values = text.partition("=")
    defaults = TrialConfig().to_dict()
    del defaults["seed"]  # it is the study's, or the trial's
    if not equals or name not in defaults:
        raise UserError(
            f"a field must be given as NAME=VALUE, and be one of {', '.join(defaults)}, but got "
            f"{text!r}; check the name"
        )
    return name, tuple(
        _parse_value(name, value, type(defaults[name])) for value in values.split(",")
    )


def _parse_value(name: str, text: str, kind: type) -> Any:
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if kind is bool:
            raise ValueError
        return kind(text)
    except ValueError:
        raise UserError(f"{name} must be {kind.__name__}, but got {text!r}; check it") from None
