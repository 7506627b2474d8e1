"""Padding: which frames of a batch are no part of an utterance."""

from typing import NamedTuple

import torch
from torch import Tensor


class Padding(NamedTuple):
    """Which frames of a batch do not count. Where all of them do, there is None instead of this."""

    lengths: Tensor  # (B,), int64: how many frames of each utterance count, the first ones
    mask: Tensor  # (B, T), bool: True where a frame does not count


def find_padding(lengths: Tensor | None, frames: int) -> Padding | None:
    """Return which of T = `frames` frames do not count; lengths is (B,), or None where all do."""
    if lengths is None:
        return None
    return Padding(lengths, torch.arange(frames, device=lengths.device) >= lengths[:, None])
