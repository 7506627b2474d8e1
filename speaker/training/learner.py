"""Learner: what one training changes, its weights and AdamW's moments.

One call of `step` is one step.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Self

import torch
from torch import Tensor, nn

from speaker.common.devices import Compute
from speaker.common.seeding import derive_seed
from speaker.config import TrialConfig
from speaker.data.batches import Batches
from speaker.data.pack import Pack
from speaker.model.classifier import SpeakerClassifier
from speaker.training.losses.cross_entropy import CrossEntropy
from speaker.training.metrics import Metrics

LOSS_LAYERS: dict[str, type[nn.Module]] = {"cross_entropy": CrossEntropy}
ALIGNMENT = 32  # numbers; each parameter starts at the begin of a cache line


class Replica(nn.Module):
    """A model and its loss, as they are computed with."""

    def __init__(self, config: TrialConfig, pack: Pack) -> None:
        super().__init__()
        self.model = SpeakerClassifier(config, pack.n_mels, len(pack.speakers))
        self.loss = LOSS_LAYERS[config.loss](config, len(pack.speakers))

    def forward(
        self, mels: Tensor, lengths: Tensor | None, labels: Tensor, reduction: str
    ) -> tuple[Tensor, Tensor]:
        """Return float32 logits (B, n_speakers) and their loss;
        the arguments are the model's and the loss's.
        """
        logits = self.model(mels, lengths).float()
        return logits, self.loss(logits, labels, reduction)


class Learner(ABC):
    """A model that learns.

    Weights and moments are float32, each one flat tensor. Replicas compute with a copy of the
    weights in the precision of matrix multiplications. Buffers, such as running statistics, are
    kept in that precision. `fallback` says why a training computes in a slower way than its device
    offers.
    """

    fallback = ""

    def __init__(self, config: TrialConfig, pack: Pack, rows: Tensor, compute: Compute) -> None:
        self._config, self._device = config, compute.device
        self._batches = Batches(config, pack, rows)
        torch.manual_seed(derive_seed(config.seed, "weights"))
        source = Replica(config, pack)
        self._shapes = {name: value.shape for name, value in source.named_parameters()}
        self.weights = _flatten(source).to(compute.device)
        self._gradient = self.weights.grad = torch.zeros_like(self.weights)
        same = compute.precision == self.weights.dtype
        self._working = self.weights if same else self.weights.to(compute.precision)
        shards = min(compute.shards, config.batch_size)
        self._replicas = [self._make_replica(source, compute) for _ in range(shards)]
        self._moments = {name: torch.zeros_like(self.weights) for name in ("exp_avg", "exp_avg_sq")}
        self._count = torch.zeros((), device=compute.device)  # AdamW's own count of steps
        self._totals = torch.zeros(2, device=compute.device)  # loss and hits
        # A GPU draws its masks of dropout from this; a CPU's follow from the step.
        torch.manual_seed(derive_seed(config.seed, "dropout"))

    @property
    def model(self) -> SpeakerClassifier:
        """The model as it is computed with, for an evaluation."""
        return self._replicas[0].model

    @property
    def loss(self) -> nn.Module:
        """The loss as it is computed with, for an evaluation."""
        return self._replicas[0].loss

    @abstractmethod
    def step(self, number: int) -> None:
        """Do a step, counted from 0. Steps are done in their order."""

    def take_totals(self) -> tuple[float, float]:
        """Return the sums over steps of mean loss and accuracy since the last call.

        This waits for the device.
        """
        loss, hits = self._totals.tolist()
        self._totals.zero_()
        return loss, hits

    def peek_loss(self) -> float:
        """Return the sum of the losses since the last `take_totals`. This waits for the device."""
        return float(self._totals[0])

    def is_finite(self) -> bool:
        """Tell whether all weights are numbers. This waits for the device."""
        return bool(self.weights.isfinite().all())

    def model_state(self) -> dict[str, Tensor]:
        """Return a copy of the model's weights and buffers by name, on the CPU:
        what is saved of it.

        Those that are floats are float32.
        """
        flat = self.weights.detach().to("cpu", copy=True)
        names = zip(self._shapes, self._views(flat), strict=True)
        parameters = {name: view.clone() for name, view in names}
        state = {}
        for name, working in self.model.state_dict().items():
            if f"model.{name}" in parameters:
                state[name] = parameters[f"model.{name}"]
            else:
                dtype = torch.float32 if working.is_floating_point() else working.dtype
                state[name] = working.to("cpu", dtype, copy=True)
        return state

    def diagnostics(self, steps: int) -> Metrics:  # noqa: ARG002  # most have none
        """Return what else is to be logged after `steps` steps. This waits for the device."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return all that later steps depend on, besides their numbers, on the CPU."""
        return {name: each.detach().to("cpu", copy=True) for name, each in self._stateful().items()}

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Resume from what `state` returned after `steps` steps."""
        with torch.no_grad():
            for name, tensor in self._stateful().items():
                tensor.copy_(state[name])
            self._count.fill_(steps)
            for replica in self._replicas[1:]:
                for buffer, source in zip(
                    replica.buffers(), self._replicas[0].buffers(), strict=True
                ):
                    buffer.copy_(source)
        self._refresh()

    def close(self) -> None:  # noqa: B027  # most hold nothing
        """Give back what the device holds for this training."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stateful(self) -> dict[str, Tensor]:
        """Return the tensors that make up the state on any device."""
        buffers = {f"buffer.{name}": each for name, each in self._replicas[0].named_buffers()}
        return {"weights": self.weights, **self._moments, "totals": self._totals, **buffers}

    def _make_replica(self, source: Replica, compute: Compute) -> Replica:
        replica = copy.deepcopy(source).to(compute.device, compute.precision).train()
        for parameter, view in zip(replica.parameters(), self._views(self._working), strict=True):
            parameter.data = view
        return replica

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Return the parameters that lie in a flat tensor, in their order."""
        shapes = self._shapes.values()
        return [flat[slot].view(shape) for slot, shape in zip(_slots(shapes), shapes, strict=True)]

    def _optimizer(self, rate: float | Tensor) -> torch.optim.AdamW:
        decay = self._config.weight_decay
        optimizer = torch.optim.AdamW([self.weights], rate, weight_decay=decay, fused=True)
        optimizer.state[self.weights] = {"step": self._count, **self._moments}
        return optimizer

    def _refresh(self) -> None:
        """Bring the replicas' copy of the weights up to date."""
        if self._working is not self.weights:
            self._working.copy_(self.weights.detach())


def _slots(shapes: Iterable[torch.Size]) -> Iterator[slice]:
    """Yield where each parameter lies in a flat tensor."""
    start = 0
    for shape in shapes:
        yield slice(start, start + shape.numel())
        start += -(-shape.numel() // ALIGNMENT) * ALIGNMENT


def flat_size(module: nn.Module) -> int:
    """Return how many numbers a module's parameters take in one flat tensor."""
    *_, last = _slots(value.shape for value in module.parameters())
    return -(-int(last.stop) // ALIGNMENT) * ALIGNMENT


def _flatten(module: nn.Module) -> Tensor:
    """Return a module's parameters in one float32 tensor;
    the gaps between them hold zeros and stay so.
    """
    slots = _slots(value.shape for value in module.parameters())
    flat = torch.zeros(flat_size(module))
    for slot, value in zip(slots, module.parameters(), strict=True):
        flat[slot] = value.detach().flatten()
    return flat
