"""Learner: weights, optimizer and batches of one training, of which one call is one step; and how a CPU does a step."""

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

ALIGNMENT = 32  # numbers; each parameter starts at the begin of a cache line


class Learner(ABC):
    """A model that learns: float32 weights and AdamW's moments, each one flat tensor, and copies to compute with.

    `fallback` says why it computes in a slower way than its device offers.
    """

    fallback = ""

    def __init__(self, config: TrialConfig, pack: Pack, rows: Tensor, compute: Compute) -> None:
        self._config, self._batches, self._device = config, Batches(config, pack, rows), compute.device
        torch.manual_seed(derive_seed(config.seed, "weights"))
        source = SpeakerClassifier(config, pack.n_mels, len(pack.speakers))
        self._named = {name: value.shape for name, value in source.named_parameters()}
        self.weights = _flatten(source).to(compute.device)
        self._gradient = self.weights.grad = torch.zeros_like(self.weights)
        same = compute.precision == self.weights.dtype
        self._working = self.weights if same else self.weights.to(compute.precision)
        self._replicas = []
        for _ in range(min(compute.shards, config.batch_size)):
            replica = copy.deepcopy(source).to(compute.device, compute.precision).train()
            for parameter, view in zip(replica.parameters(), self._views(self._working), strict=True):
                parameter.data = view
            self._replicas.append(replica)
        self._moments = {name: torch.zeros_like(self.weights) for name in ("exp_avg", "exp_avg_sq")}
        self._count = torch.zeros((), device=compute.device)  # AdamW's own count of steps
        self._totals = torch.zeros(2, device=compute.device)  # loss and hits
        torch.manual_seed(derive_seed(config.seed, "dropout"))  # a GPU's; a CPU's masks are addressed by step

    @property
    def model(self) -> SpeakerClassifier:
        """The model as it is computed with, for an evaluation."""
        return self._replicas[0]

    @abstractmethod
    def step(self, number: int) -> None:
        """Do a step, counted from 0. Steps are done in their order."""

    def take_totals(self) -> tuple[float, float]:
        """Return the sums over steps of mean loss and accuracy since the last call. This waits for the device."""
        loss, hits = self._totals.tolist()
        self._totals.zero_()
        return loss, hits

    def peek_loss(self) -> float:
        """Return the sum of the losses since the last `take_totals`. This waits for the device."""
        return float(self._totals[0])

    def is_finite(self) -> bool:
        """Tell whether all weights are numbers. This waits for the device."""
        return bool(self.weights.isfinite().all())

    def named_weights(self) -> dict[str, Tensor]:
        """Return a copy of the float32 weights by name, on the CPU."""
        flat = self.weights.detach().to("cpu", copy=True)
        return {name: view.clone() for name, view in zip(self._named, self._views(flat), strict=True)}

    def diagnostics(self, steps: int) -> dict[str, float]:  # noqa: ARG002  # most have none
        """Return what else is to be logged after `steps` steps. This waits for the device."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return all that the steps to come depend on, besides their numbers, on the CPU."""
        tensors = {"weights": self.weights, **self._moments, "totals": self._totals}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on from what `state` returned after `steps` steps."""
        with torch.no_grad():
            for name, tensor in {"weights": self.weights, **self._moments, "totals": self._totals}.items():
                tensor.copy_(state[name])
            self._count.fill_(steps)
        self._refresh()

    def close(self) -> None:  # noqa: B027  # most hold nothing
        """Give back what the device holds for this training."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Return the parameters that lie in a flat tensor, in their order."""
        shapes = self._named.values()
        return [flat[part].view(shape) for part, shape in zip(_parts(shapes), shapes, strict=True)]

    def _optimizer(self, rate: float | Tensor) -> torch.optim.AdamW:
        optimizer = torch.optim.AdamW([self.weights], rate, weight_decay=self._config.weight_decay, fused=True)
        optimizer.state[self.weights] = {"step": self._count, **self._moments}
        return optimizer

    def _refresh(self) -> None:
        """Bring the copies to compute with up to the weights."""
        if self._working is not self.weights:
            self._working.copy_(self.weights.detach())


def _parts(shapes: Iterable[torch.Size]) -> Iterator[slice]:
    """Yield where each parameter lies in a flat tensor."""
    start = 0
    for shape in shapes:
        yield slice(start, start + shape.numel())
        start += -(-shape.numel() // ALIGNMENT) * ALIGNMENT


def _flatten(model: nn.Module) -> Tensor:
    """Return a model's parameters in one float32 tensor; the gaps between them hold zeros, and stay so."""
    parts = list(_parts(value.shape for value in model.parameters()))
    flat = torch.zeros(-(-parts[-1].stop // ALIGNMENT) * ALIGNMENT)
    for part, value in zip(parts, model.parameters(), strict=True):
        flat[part] = value.detach().flatten()
    return flat
