"""Accuracy under a protocol: whole utterances, which is what the user is scored on, and the homework's crops."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speaker.corpus import split
from speaker.pack import Pack, length_buckets
from speaker.seeding import uniform

ACCURACY_WHOLE = "valid/accuracy_whole"
ACCURACY_CROPS = "valid/accuracy_crops"
OBJECTIVE = ACCURACY_WHOLE
MAX_FRAMES = {"cpu": 4_096, "cuda": 262_144, "mps": 32_768}  # of a batch, padding included; the CPU's caches are small


@dataclass(frozen=True)
class Protocol:
    """How an accuracy is measured. Numbers of different protocols are never ranked together."""

    split_seed: int = 0  # decides which tenth of the utterances is the validation part
    crop_len: int = 128  # frames of a crop: the homework's
    crop_seed: int = 0  # decides where each utterance is cropped

    def split(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return the rows (train, valid) of a pack, int64 on the CPU."""
        return split(len(pack), self.split_seed)

    def describe(self) -> dict[str, str]:
        """Return each accuracy's protocol in words, by the accuracy's name."""
        part = f"valid part of split {self.split_seed}"
        return {
            ACCURACY_WHOLE: f"{part}, whole utterances, masked",
            ACCURACY_CROPS: f"{part}, one crop of {self.crop_len} frames each, crop seed {self.crop_seed}",
        }


class Evaluator:
    """Measures a model on the validation part of a pack. Everything that does not depend on the model is done once."""

    def __init__(self, pack: Pack, protocol: Protocol, clock: Callable[[], float] = time.perf_counter) -> None:
        self._pack = pack
        self._clock = clock
        device = pack.frames.device
        max_frames = MAX_FRAMES[device.type]
        _, valid = protocol.split(pack)
        self._count = len(valid)
        lengths = pack.lengths.cpu()[valid]
        self._wholes = [(valid[part].to(device), width) for part, width in length_buckets(lengths, max_frames)]
        self._width = min(protocol.crop_len, pack.longest)
        starts = pack.crop_starts(valid.to(device), uniform(len(valid), protocol.crop_seed, "crop").to(device),
                                  self._width)  # fmt: skip
        size = max(1, max_frames // self._width)
        self._crops = list(zip(valid.to(device).split(size), starts.split(size), strict=True))

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return accuracies in [0, 1], the loss on whole utterances in nats, and whole utterances a second."""
        was_training = model.training
        model.eval()
        began = self._clock()
        totals = torch.zeros(3, device=self._pack.frames.device)  # whole hits, whole loss, crop hits
        for rows, width in self._wholes:
            logits, labels = self._logits(model, rows, 0, width)
            totals[0] += (logits.argmax(1) == labels).sum()
            totals[1] += F.cross_entropy(logits, labels, reduction="sum")
        hits, loss = totals[:2].tolist()  # waits for the device
        seconds = self._clock() - began
        for rows, starts in self._crops:
            logits, labels = self._logits(model, rows, starts, self._width)
            totals[2] += (logits.argmax(1) == labels).sum()
        model.train(was_training)
        return {
            ACCURACY_WHOLE: hits / self._count,
            ACCURACY_CROPS: float(totals[2]) / self._count,
            "valid/loss_whole": loss / self._count,
            "speed/valid_uttr_per_s": self._count / max(seconds, 1e-9),
        }

    def _logits(self, model: nn.Module, rows: Tensor, starts: Tensor | int, width: int) -> tuple[Tensor, Tensor]:
        mels, lengths = self._pack.gather(rows, starts, width)
        return model(mels, lengths), self._pack.labels[rows]
