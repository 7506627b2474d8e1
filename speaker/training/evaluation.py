"""Accuracy under a protocol: whole utterances, which is what the user is scored on,
and the homework's crops.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speaker.common.cuda import is_out_of_memory, release_memory
from speaker.common.devices import ThreadPool
from speaker.common.seeding import uniform
from speaker.data.pack import Pack, length_buckets
from speaker.data.protocol import Protocol
from speaker.training.metrics import (
    ACCURACY_CROPS,
    ACCURACY_WHOLE,
    CROPS_PER_S,
    LOSS_WHOLE,
    UTTERANCES_PER_S,
    Metrics,
)

# Of a batch, padding included; the CPU's caches are small.
MAX_FRAMES = {"cpu": 4_096, "cuda": 131_072, "mps": 32_768}
# Of a batch: a GPU's kernels of attention can be started for at most 65,535.
MAX_UTTERANCES = 16_384


class Batch(NamedTuple):
    """Some utterances that are scored together."""

    rows: Tensor  # (B,), int64, of the pack
    starts: Tensor  # (B,), int64: first frames
    width: int  # frames of each
    is_padded: bool  # whether some end before that


class Evaluator:
    """Measures a model on the validation part of a pack.

    Everything that does not depend on the model is done once. Where memory is too short for a batch
    all batches are halved, for later evaluations too.
    """

    def __init__(
        self,
        pack: Pack,
        protocol: Protocol,
        pool: ThreadPool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pack = pack
        self._pool = pool or ThreadPool(1)
        self._clock = clock
        _, valid = protocol.split(pack)
        self._count = len(valid)
        self._valid = valid
        self._labels = pack.labels.cpu()[valid]
        self.told = torch.full((len(valid),), -1)
        """Of the last evaluation: the label that each validation utterance, whole, was given."""
        self._wholes = whole_batches(pack, valid)
        self._crops = crop_batches(pack, valid, protocol)

    def __call__(self, model: nn.Module, loss: nn.Module) -> Metrics:
        """Return both accuracies, the loss on whole utterances, and utterances a second of both."""
        with evaluating(model, loss):
            total, told, rate = self._measure(model, loss, self._wholes)
            _, crops_told, crop_rate = self._measure(model, loss, self._crops)
        self.told = self._in_order(told, self._wholes)
        crop_hits = self._in_order(crops_told, self._crops) == self._labels
        return {
            ACCURACY_WHOLE: int(self.hits.sum()) / self._count,
            ACCURACY_CROPS: int(crop_hits.sum()) / self._count,
            LOSS_WHOLE: total / self._count,
            UTTERANCES_PER_S: rate,
            CROPS_PER_S: crop_rate,
        }

    @property
    def hits(self) -> Tensor:
        """Whether the last evaluation told each validation utterance right, bool (n,)."""
        return self.told == self._labels

    def rehearse(self, model: nn.Module, loss: nn.Module) -> float:
        """Score a few batches of middle length, and on a GPU the longest.

        Returns the seconds that a whole evaluation would take.
        """
        on_cpu = self._pack.frames.device.type == "cpu"
        seconds = 0.0
        with evaluating(model, loss):
            if not on_cpu:
                largest = max(self._wholes, key=lambda batch: len(batch.rows) * batch.width)
                longest = self._wholes[-1]
                self._measure(model, loss, [longest, largest])  # what needs the most memory
            for batches in (self._wholes, self._crops):
                middle = batches[len(batches) // 2 :][: self._pool.size]
                # Before they are halved where memory is short.
                fraction = len(middle) / len(batches)
                for _ in range(1 if on_cpu else 2):  # libraries settle on their kernels first
                    _, _, rate = self._measure(model, loss, middle)
                seconds += self._count / rate / fraction
        return seconds

    def _measure(
        self, model: nn.Module, loss: nn.Module, batches: list[Batch]
    ) -> tuple[float, Tensor, float]:
        """Return the sum of the loss over some batches, the labels that their utterances were
        given, int64 on the CPU, and utterances a second.
        """
        while True:
            began = self._clock()
            try:
                scores = self._pool.map(lambda batch: self._score(model, loss, batch), batches)
                losses, labels = zip(*scores, strict=True)
                total = float(torch.stack(losses).sum())  # waits for the device
                told = torch.cat(labels).cpu()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or all(len(batch.rows) == 1 for batch in batches):
                    raise
            else:
                return total, told, self._count / max(self._clock() - began, 1e-9)
            batches[:] = [half for batch in batches for half in _halve(batch)]
            release_memory()

    @torch.inference_mode()
    def _score(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the sum of a batch's loss, (), and the labels it gives, (B,)."""
        mels, lengths = self._pack.gather(*batch)
        labels = self._pack.labels.index_select(0, batch.rows)
        logits = model(mels, lengths).float()
        return loss(logits, labels, "sum"), logits.argmax(1)

    def _in_order(self, told: Tensor, batches: list[Batch]) -> Tensor:
        """Return labels in the order of the validation rows."""
        rows = torch.cat([batch.rows for batch in batches]).cpu()
        ordered = torch.empty_like(told)
        ordered[self._valid.argsort()] = told[rows.argsort()]
        return ordered


def whole_batches(pack: Pack, rows: Tensor) -> list[Batch]:
    """Return batches of whole utterances, each of like lengths, the shortest first."""
    device = pack.frames.device
    lengths = pack.lengths.cpu()[rows]
    batches = []
    for part, width in length_buckets(lengths, MAX_FRAMES[device.type], MAX_UTTERANCES):
        starts = torch.zeros(len(part), dtype=torch.int64, device=device)
        is_padded = bool((lengths[part] < width).any())
        batches.append(Batch(rows[part].to(device), starts, width, is_padded))
    return batches


def crop_batches(pack: Pack, rows: Tensor, protocol: Protocol) -> list[Batch]:
    """Return batches of one crop of each utterance; those that need no padding come first."""
    device = pack.frames.device
    width = min(protocol.crop_len, pack.longest)
    count = min(MAX_UTTERANCES, max(1, MAX_FRAMES[device.type] // width))
    offsets = uniform(len(rows), protocol.crop_seed, "crop").to(device)
    starts = pack.crop_starts(rows.to(device), offsets, width)
    is_short = pack.lengths.cpu()[rows] < width
    return [
        Batch(rows[part].to(device), starts[part.to(device)], width, is_padded)
        for is_padded in (False, True)
        for part in (is_short == is_padded).nonzero().flatten().split(count)
        if len(part)
    ]


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode for a `with` block."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def _halve(batch: Batch) -> list[Batch]:
    """Cut a batch in two, where it has more than one utterance."""
    halves = zip(batch.rows.tensor_split(2), batch.starts.tensor_split(2), strict=True)
    return [
        Batch(rows, starts, batch.width, batch.is_padded) for rows, starts in halves if len(rows)
    ]
