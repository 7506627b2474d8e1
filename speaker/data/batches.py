"""What each step of a training learns from: an order of the utterances, and a crop of each."""

from dataclasses import dataclass

from torch import Tensor

from speaker.common.seeding import permutation, uniform
from speaker.config import TrialConfig
from speaker.data.pack import Pack


@dataclass(frozen=True)
class Epoch:
    """What an epoch's steps learn from, in their order."""

    rows: Tensor  # (n,), int64, on the pack's device
    crop_offsets: Tensor  # (n,), float32 in [0, 1): where each utterance is cropped
    # For each step: whether some utterance of its batch is shorter than a crop.
    is_padded: list[bool]


class Batches:
    """What each step learns from: a new order and new crops each epoch,
    the last partial batch dropped.

    Both follow from the seed and the epoch, so that a step's batch follows from its number.
    """

    def __init__(self, config: TrialConfig, pack: Pack, rows: Tensor) -> None:
        self._seed, self._size = config.seed, config.batch_size
        self._pack, self._rows = pack, rows
        self.width = min(config.segment_len, pack.longest)  # frames of a crop
        self._is_short = pack.lengths.cpu() < self.width
        self.steps_per_epoch = len(rows) // config.batch_size

    @property
    def kinds(self) -> set[bool]:
        """Which values of `Epoch.is_padded` there can be."""
        short = self._is_short[self._rows]
        return {bool(short.any()), bool(short.all())}

    def draw_epoch(self, epoch: int) -> Epoch:
        """Return what an epoch's steps learn from."""
        device = self._pack.frames.device
        order = self._rows[permutation(len(self._rows), self._seed, "order", epoch)]
        offsets = uniform(len(order), self._seed, "crop", epoch)
        used = order[: self.steps_per_epoch * self._size].view(-1, self._size)
        is_padded = self._is_short[used].any(1).tolist()
        return Epoch(order.to(device), offsets.to(device), is_padded)

    def gather(
        self, rows: Tensor, crop_offsets: Tensor, is_padded: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return (mels, lengths, labels) of crops; lengths is None unless the batch `is_padded`.

        mels is (B, T, n_mels), as the pack holds them.
        """
        starts = self._pack.crop_starts(rows, crop_offsets, self.width)
        mels, lengths = self._pack.gather(rows, starts, self.width, is_padded)
        return mels, lengths, self._pack.labels[rows]
