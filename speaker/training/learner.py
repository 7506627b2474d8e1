"""Learner: weights, optimizer and batches of one training, of which one call is one step; and how a CPU does a step."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speaker.common.devices import Compute, Crew
from speaker.common.seeding import derive_seed, permutation, uniform
from speaker.config import TrialConfig
from speaker.data.pack import Pack
from speaker.model.classifier import SpeakerClassifier

ALIGNMENT = 32  # numbers; each parameter starts at the begin of a cache line


def learning_rate(config: TrialConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up from 0, then a cosine to 0 at config.steps.

    Source: transformers' get_cosine_schedule_with_warmup with half a cycle, as in the homework.
    """
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Epoch:
    """What an epoch's steps learn from, in their order."""

    rows: Tensor  # (n,), int64, on the pack's device
    places: Tensor  # (n,), float32 in [0, 1): where each utterance is cropped
    whole: list[bool]  # for each step: whether no utterance of its batch is shorter than a segment


class Batches:
    """What each step learns from: a new order and new crops each epoch, the last partial batch dropped.

    Both are addressed by seed and epoch, so that a step's batch follows from its number.
    """

    def __init__(self, config: TrialConfig, pack: Pack, rows: Tensor) -> None:
        self._seed, self._size = config.seed, config.batch_size
        self._pack, self._rows = pack, rows
        self.width = min(config.segment_len, pack.longest)  # frames of a crop
        self._is_whole = pack.lengths.cpu() >= self.width
        self.steps_per_epoch = len(rows) // config.batch_size
        self.kinds = {bool(self._is_whole[rows].all()), True} if self._is_whole[rows].any() else {False}

    def draw_epoch(self, epoch: int) -> Epoch:
        """Return what an epoch's steps learn from."""
        device = self._pack.frames.device
        order = self._rows[permutation(len(self._rows), self._seed, "order", epoch)]
        places = uniform(len(order), self._seed, "crop", epoch)
        used = self._is_whole[order[: self.steps_per_epoch * self._size]]
        return Epoch(order.to(device), places.to(device), used.view(-1, self._size).all(1).tolist())

    def gather(self, rows: Tensor, places: Tensor, whole: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return (mels, lengths, labels) of crops; lengths is None where all are `whole`, else mels is padded.

        mels is (B, T, n_mels), as the pack holds them.
        """
        starts = self._pack.crop_starts(rows, places, self.width)
        return *self._pack.gather(rows, starts, self.width, whole), self._pack.labels[rows]


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


class ShardedLearner(Learner):
    """Learns on the CPU: each thread of a crew computes the gradient of its part of the batch."""

    def __init__(self, config: TrialConfig, pack: Pack, rows: Tensor, compute: Compute, crew: Crew) -> None:
        super().__init__(config, pack, rows, compute)
        self._crew = crew
        self._gradients = [torch.zeros_like(self._working) for _ in self._replicas]
        for replica, gradient in zip(self._replicas, self._gradients, strict=True):
            for parameter, view in zip(replica.parameters(), self._views(gradient), strict=True):
                parameter.grad = view
        self._adamw = self._optimizer(config.lr)
        self._epoch = -1

    def step(self, number: int) -> None:
        """Do a step, counted from 0."""
        epoch, index = divmod(number, self._batches.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._drawn = epoch, self._batches.draw_epoch(epoch)
        batch = slice(index * self._config.batch_size, (index + 1) * self._config.batch_size)
        whole = self._drawn.whole[index]
        count = len(self._replicas)
        rows, places = self._drawn.rows[batch].tensor_split(count), self._drawn.places[batch].tensor_split(count)
        parts = zip(range(count), rows, places, strict=True)
        scores = self._crew.map(lambda part: self._learn(number, *part, whole), parts)
        self._gradient.copy_(self._gradients[0])
        for gradient in self._gradients[1:]:
            self._gradient.add_(gradient)
        self._adamw.param_groups[0]["lr"] = learning_rate(self._config, number)
        self._adamw.step()
        self._refresh()
        self._totals += torch.stack(scores).sum(0)

    def _learn(self, number: int, shard: int, rows: Tensor, places: Tensor, whole: bool) -> Tensor:
        """Leave a part's gradient behind; return its share of the batch's mean loss and accuracy."""
        model = self._replicas[shard]
        model.dropout.reseed(derive_seed(self._config.seed, "dropout", number, shard))
        self._gradients[shard].zero_()
        return learn(model, self._batches.gather(rows, places, whole), self._config.batch_size)


def learn(model: SpeakerClassifier, part: tuple[Tensor, Tensor | None, Tensor], batch_size: int) -> Tensor:
    """Add the gradient of a part's share of the batch's mean loss; return that share and its hits', (2,)."""
    mels, lengths, labels = part
    logits = model(mels, lengths).float()
    loss = F.cross_entropy(logits, labels, reduction="sum") / batch_size
    loss.backward()
    with torch.no_grad():
        return torch.stack((loss.detach(), (logits.argmax(1) == labels).sum() / batch_size))


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
