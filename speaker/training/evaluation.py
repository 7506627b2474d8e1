"""Accuracy under a protocol: whole utterances, which is what the user is scored on, and the homework's crops."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speaker.common.cuda import is_out_of_memory, release_memory
from speaker.common.devices import ThreadPool
from speaker.common.seeding import uniform
from speaker.data.pack import Pack, length_buckets
from speaker.data.protocol import Protocol
from speaker.training.metrics import ACCURACY_CROPS, ACCURACY_WHOLE, CROPS_PER_S, LOSS_WHOLE, UTTERANCES_PER_S

MAX_FRAMES = {"cpu": 4_096, "cuda": 131_072, "mps": 32_768}  # of a batch, padding included; the CPU's caches are small
MAX_UTTERANCES = 16_384  # of a batch: a GPU's kernels of attention can be started for at most 65,535


class Batch(NamedTuple):
    """Some utterances that are scored together."""

    rows: Tensor  # (B,), int64, of the pack
    starts: Tensor  # (B,), int64: first frames
    width: int  # frames of each
    whole: bool  # whether none ends before that


class Evaluator:
    """Measures a model on the validation part of a pack. Everything that does not depend on the model is done once."""

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
        device = pack.frames.device
        max_frames = MAX_FRAMES[device.type]
        _, valid = protocol.split(pack)
        self._count = len(valid)
        lengths = pack.lengths.cpu()[valid]
        self._wholes = [
            Batch(valid[part].to(device), torch.zeros(len(part), dtype=torch.int64, device=device), width,
                  bool((lengths[part] == width).all()))
            for part, width in length_buckets(lengths, max_frames, MAX_UTTERANCES)
        ]  # fmt: skip
        width = min(protocol.crop_len, pack.longest)
        count = min(MAX_UTTERANCES, max(1, max_frames // width))
        places = uniform(len(valid), protocol.crop_seed, "crop").to(device)
        starts = pack.crop_starts(valid.to(device), places, width)
        self._crops = [
            Batch(valid[part].to(device), starts[part.to(device)], width, whole)
            for whole in (True, False)  # a batch in which none is padded needs no mask
            for part in ((lengths >= width) == whole).nonzero().flatten().split(count)
            if len(part)
        ]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return accuracies in [0, 1], the loss on whole utterances in nats, and utterances a second of both."""
        was_training = model.training
        model.eval()
        loss, hits, rate = self._measure(model, self._wholes)
        _, crop_hits, crop_rate = self._measure(model, self._crops)
        model.train(was_training)
        return {
            ACCURACY_WHOLE: hits / self._count,
            ACCURACY_CROPS: crop_hits / self._count,
            LOSS_WHOLE: loss / self._count,
            UTTERANCES_PER_S: rate,
            CROPS_PER_S: crop_rate,
        }

    def rehearse(self, model: nn.Module) -> float:
        """Score a few batches of middle length, and on a GPU the longest; return the seconds of a whole evaluation."""
        was_training = model.training
        model.eval()
        on_cpu = self._pack.frames.device.type == "cpu"
        if not on_cpu:
            largest = max(self._wholes, key=lambda batch: len(batch.rows) * batch.width)
            self._measure(model, [self._wholes[-1], largest])  # the longest, and what needs the most memory
        seconds = 0.0
        for batches in (self._wholes, self._crops):
            middle = batches[len(batches) // 2 :][: self._pool.size]
            share = len(middle) / len(batches)  # halves are made of them where memory is short
            for _ in range(1 if on_cpu else 2):  # libraries settle on their kernels first
                _, _, rate = self._measure(model, middle)
            seconds += self._count / rate / share
        model.train(was_training)
        return seconds

    def _measure(self, model: nn.Module, batches: list[Batch]) -> tuple[float, float, float]:
        """Return the sums of loss and hits over some batches, and utterances a second.

        Where memory is too short all batches are halved, for later evaluations, too. Raises what a batch of one does.
        """
        while True:
            began = self._clock()
            try:
                scores = self._pool.map(lambda batch: self._score(model, batch), batches)
                loss, hits = torch.stack(scores).sum(0).tolist()  # waits for the device
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or all(len(batch.rows) == 1 for batch in batches):
                    raise
            else:
                return loss, hits, self._count / max(self._clock() - began, 1e-9)
            batches[:] = [half for batch in batches for half in _halve(batch)]
            release_memory()

    @torch.inference_mode()
    def _score(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sums of loss and hits over a batch, (2,)."""
        mels, lengths = self._pack.gather(*batch)
        logits, labels = model(mels, lengths).float(), self._pack.labels.index_select(0, batch.rows)
        return torch.stack((F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()))


def _halve(batch: Batch) -> list[Batch]:
    """Cut a batch in two, where it has more than one utterance."""
    halves = zip(batch.rows.tensor_split(2), batch.starts.tensor_split(2), strict=True)
    return [Batch(rows, starts, batch.width, batch.whole) for rows, starts in halves if len(rows)]
