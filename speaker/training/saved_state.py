"""What the checkpoint of one training can hold: how many bytes, which tensors, which numbers.

A damaged one shows by its digest; this finds what a digest cannot, before anything is loaded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speaker.config import TrialConfig
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.training.learner import Replica, flat_size
from speaker.training.metrics import OBJECTIVE, hits_of

if TYPE_CHECKING:  # which uses this module
    from speaker.training.checkpoint import TrainingState

Tensors = Mapping[str, Tensor]
FREE_BYTES = 1 << 20  # of a checkpoint: names, shapes, a device's random numbers
ROW_BYTES, UTTERANCE_BYTES = 2_000, 16  # of its JSON: more than an evaluation and a label take


@dataclass(frozen=True)
class Expected:
    """A training, as far as it decides what its checkpoint can hold."""

    config: TrialConfig
    pack: Pack
    protocol: Protocol
    precision: torch.dtype

    def max_bytes(self) -> int:
        """Return more bytes than a checkpoint of this training can have."""
        tensors = [*self._learner.values(), *self._model.values()]
        sizes = sum(each.numel() * each.element_size() for each in tensors)
        rows = len(self._evaluations(self.config.steps))
        return sizes + FREE_BYTES + ROW_BYTES * rows + UTTERANCE_BYTES * self._valid

    def fault(self, state: "TrainingState", learner: Tensors) -> str:
        """Return what is wrong with a state, or nothing."""
        return (
            self._progress_fault(state)
            or self._best_fault(state)
            or _differences(self._model if state.rows else {}, state.weights, "best weights")
            or _differences(self._learner, _without_own(learner), "the learner's state")
            or _own_fault(learner)
        )

    @cached_property
    def _replica(self) -> Replica:
        """The network of this training, laid out without memory."""
        with torch.device("meta"):
            return Replica(self.config, self.pack)

    @cached_property
    def _learner(self) -> Tensors:
        """What every learner of this training keeps, without memory: see `Learner.state`."""
        flat = torch.empty(flat_size(self._replica), device="meta")
        buffers = dict(self._replica.to(self.precision).named_buffers())
        return {
            **dict.fromkeys(("weights", "exp_avg", "exp_avg_sq"), flat),
            "totals": torch.empty(2, device="meta"),
            **{f"buffer.{name}": each for name, each in buffers.items()},
        }

    @cached_property
    def _model(self) -> Tensors:
        """What is saved of the model, without memory: see `Learner.model_state`."""
        return {
            name: each.float() if each.is_floating_point() else each
            for name, each in self._replica.model.state_dict().items()
        }

    @cached_property
    def _valid(self) -> int:
        """How many validation utterances there are."""
        return len(self.protocol.split(self.pack)[1])

    def _evaluations(self, step: int) -> list[int]:
        """Return after which steps there was an evaluation, up to a step."""
        every, last = self.config.valid_every, self.config.steps
        return [*range(every, min(step, last - 1) + 1, every), *[last] * (step == last)]

    def _progress_fault(self, state: "TrainingState") -> str:
        if not 0 <= state.step <= self.config.steps:
            return f"step {state.step} is none of its {self.config.steps:,}"
        if not 0 <= state.seconds < math.inf:
            return f"it took {state.seconds} s"
        if [step for step, _ in state.rows] != self._evaluations(state.step):
            return f"its evaluations are not those up to step {state.step}"
        if state.last != (state.rows[-1][0] if state.rows else 0):
            return f"its last evaluation is not that of step {state.last}"
        odd = (name for _, row in state.rows for name in row if not math.isfinite(row[name]))
        return f"its {name} is no number" if (name := next(odd, "")) else ""

    def _best_fault(self, state: "TrainingState") -> str:
        if not all(OBJECTIVE in row for _, row in state.rows):
            return f"an evaluation has no {OBJECTIVE}"
        best = max(state.rows, key=lambda row: row[1][OBJECTIVE])[0] if state.rows else 0
        if state.best_step != best:
            return f"its best evaluation is not that of step {state.best_step}"
        try:
            hits = hits_of(state.hits) if state.rows or state.hits else []
        except ValueError:
            return "its hits cannot be read"
        count = self._valid if state.rows else 0
        if not len(hits) == len(state.told) == count:
            return f"it has not one hit and one label for each of {count:,} utterances"
        if not all(0 <= label < len(self.pack.speakers) for label in state.told):
            return "one of its labels is no speaker's"
        return ""


def _without_own(learner: Tensors) -> Tensors:
    return {name: each for name, each in learner.items() if not _is_own(name)}


def _is_own(name: str) -> bool:
    """Whether a tensor is one that only learners on some devices have."""
    return name in ("count", "scale", "streak") or name.startswith("random.")


def _own_fault(learner: Tensors) -> str:
    """Return what is wrong with the tensors that only learners on some devices have, or nothing."""
    for name, each in learner.items():
        if name.startswith("random."):
            if fault := _random_fault(name, each):
                return fault
        elif _is_own(name):
            dtype = torch.int32 if name == "streak" else torch.float32
            if (each.shape, each.dtype) != (torch.Size(), dtype) or not 0 <= float(each) < math.inf:
                return f"the learner's {name} is none"
    return ""


def _random_fault(name: str, state: Tensor) -> str:
    """Return what is wrong with a device's random numbers, which only that device could load."""
    is_wrong = state.dtype != torch.uint8 or state.dim() != 1
    if not is_wrong and name == "random.cpu":
        try:
            torch.Generator().set_state(state)
        except (RuntimeError, TypeError):
            is_wrong = True
    elif not is_wrong and name == "random.cuda":  # a seed and an offset of whole groups of four
        is_wrong = len(state) != 16 or int(state[8]) % 4 != 0
    else:
        is_wrong = is_wrong or name != "random.mps"
    return f"{name} holds no random numbers" if is_wrong else ""


def _differences(expected: Tensors, found: Tensors, what: str) -> str:
    """Return in words how tensors differ in names, shapes or types from those that are expected."""
    if odd := sorted(expected.keys() ^ found.keys()):
        return f"{what} {'lack' if odd[0] in expected else 'must not have'} {odd[0][:80]!r}"
    for name, tensor in expected.items():
        here, there = (found[name].shape, found[name].dtype), (tensor.shape, tensor.dtype)
        if here != there:
            return f"{name} in {what} is {here[1]} {tuple(here[0])[:9]}"
    return ""
