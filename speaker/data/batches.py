"""What each step of a training learns from: an order, crops and their batches."""

from dataclasses import dataclass

from torch import Tensor

from speaker.common.seeding import permutation, uniform
from speaker.config import TrialConfig
from speaker.data.pack import Pack


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
