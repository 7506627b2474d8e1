"""TrialConfig: one point, every number that decides what a trial learns;
and the points the homework made known.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Self

from speaker.common.errors import UserError
from speaker.common.files import canonical_json

ACTIVATIONS = ("sigmoid", "relu", "gelu", "tanh", "silu")
ENCODERS = ("transformer",)
POOLINGS = ("mean", "attentive")
LOSSES = ("cross_entropy",)
AT_LEAST_ONE = (
    "d_model", "nhead", "num_layers", "dim_feedforward", "batch_size", "segment_len", "steps",
    "valid_every",
)  # fmt: skip
NAMES = {"activation": ACTIVATIONS, "encoder": ENCODERS, "pooling": POOLINGS, "loss": LOSSES}
ADDED_LATER = frozenset({"encoder", "pooling", "loss"})
"""Fields that older configs, models, checkpoints and studies lack.

Their defaults mean what was done before.
"""


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def _check_type(name: str, value: object, expected: type) -> None:
    """Accept exactly the default's type: no bool for an int, no NaN in disguise,
    no text for a number.
    """
    _check(type(value) is expected, f"{name} must be {expected.__name__}, but got {value!r}")


@dataclass(frozen=True)
class TrialConfig:
    """One point of the search space, validated
    when built. The defaults are the homework's sample code.

    The field names are also the command-line flags, the MLflow params and the Optuna params.
    Raises UserError for a value that breaks a rule.
    """

    d_model: int = 80  # width of the encoder
    nhead: int = 2  # attention heads; divides d_model
    num_layers: int = 1  # encoder layers
    activation: str = "sigmoid"  # between the two linear layers of the head
    dim_feedforward: int = 256  # width inside an encoder layer
    dropout: float = 0.1
    norm_first: bool = False  # False: LayerNorm after each block, as in the homework
    lr: float = 1e-3  # peak learning rate of AdamW
    weight_decay: float = 0.01
    batch_size: int = 32  # utterances a step
    segment_len: int = 128  # frames of a training crop
    steps: int = 70_000
    # The learning rate rises from 0 over these, then falls by a cosine to 0 at `steps`.
    warmup_steps: int = 1_000
    valid_every: int = 2_000  # steps between evaluations
    seed: int = 0  # of weights, dropout, data order and crops
    encoder: str = "transformer"  # frames to frames
    pooling: str = "mean"  # frames to one vector
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), type(field.default))
        for name in AT_LEAST_ONE:
            _check(
                getattr(self, name) >= 1,
                f"{name} must be at least 1, but got {getattr(self, name)}",
            )
        if self.d_model % self.nhead:
            legal = ", ".join(
                str(n) for n in range(1, min(self.d_model, 256) + 1) if self.d_model % n == 0
            )
            raise UserError(
                f"nhead must divide d_model, but got d_model={self.d_model}, nhead={self.nhead}; "
                f"choose nhead from {legal}"
            )
        for name, known in NAMES.items():
            value = getattr(self, name)
            _check(value in known, f"{name} must be one of {', '.join(known)}, but got {value!r}")
        _check(0 <= self.dropout < 1, f"dropout must be in [0, 1), but got {self.dropout}")
        _check(0 < self.lr < math.inf, f"lr must be above 0 and finite, but got {self.lr}")
        _check(
            0 <= self.weight_decay < math.inf,
            f"weight_decay must be at least 0 and finite, but got {self.weight_decay}",
        )
        _check(
            0 <= self.warmup_steps <= self.steps,
            f"warmup_steps must be from 0 to steps={self.steps}, but got {self.warmup_steps}",
        )
        _check(0 <= self.seed < 2**31, f"seed must be from 0 to 2147483647, but got {self.seed}")

    def replace(self, **changes: Any) -> Self:
        """Return this point with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    def with_steps(self, steps: int) -> Self:
        """Return this point with another budget; in a short one,
        warm-up takes a tenth and evaluations are five.
        """
        return self.replace(
            steps=steps,
            warmup_steps=min(self.warmup_steps, steps // 10),
            valid_every=min(self.valid_every, max(1, steps // 5)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, in order."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the fields as indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, fields: object) -> Self:
        """Build a point from what `to_dict` gave, in this version or in an older one.

        Raises UserError when a field is unknown, or missing and not one of ADDED_LATER.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict):
            raise UserError(f"a config must be a JSON object, but is {type(fields).__name__}")
        if wrong := {*(set(fields) - names), *(names - ADDED_LATER - set(fields))}:
            raise UserError(
                "a config must have exactly the fields of TrialConfig, but these differ: "
                f"{sorted(wrong)}"
            )
        return cls(**fields)

    def identity(self) -> dict[str, Any]:
        """Return what tells this point from others: the same as before a field was added,
        where that is at its default.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in ADDED_LATER or value != defaults[name]
        }

    def fingerprint(self) -> str:
        """Return the identity of this point: 12 hex digits of the sha256 of its canonical JSON."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()[:12]

    def label(self) -> str:
        """Return the four searched numbers in short, such as 'd256 h8 L4 relu', and what else is
        not the homework's: pre-norm, the learning rate, the blocks.
        """
        words = [f"d{self.d_model} h{self.nhead} L{self.num_layers} {self.activation}"]
        words += ["pre-norm"] * self.norm_first
        words += [f"lr {self.lr:.2g}"] * (self.lr != type(self).lr)
        words += [str(value) for name, value in self.identity().items() if name in ADDED_LATER]
        return " ".join(words)


HOMEWORK_BASELINE = TrialConfig()  # printed 0.4834 by crops
# Printed 0.7599 by crops.
HOMEWORK_EDITED = TrialConfig(d_model=512, nhead=16, num_layers=6, activation="relu")
PRESETS = {"homework-baseline": HOMEWORK_BASELINE, "homework-edited": HOMEWORK_EDITED}

DEMO_BUDGET = HOMEWORK_BASELINE.replace(steps=100, warmup_steps=10, valid_every=20, segment_len=32)
"""What a trial costs on the demo corpus: seconds on two CPU cores, so fifty take minutes."""
