"""Protocol: how an accuracy is measured."""

from dataclasses import dataclass

from torch import Tensor

from speaker.data.pack import Pack
from speaker.data.split import split


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
        """Return in words how each of the two accuracies is measured: on whole utterances,
        and on crops.
        """
        part = f"valid part of split {self.split_seed}"
        return {
            "whole": f"{part}, whole utterances, masked",
            "crops": f"{part}, one crop of {self.crop_len} frames each, crop seed {self.crop_seed}",
        }
