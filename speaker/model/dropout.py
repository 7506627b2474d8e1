"""Dropout that is cheap on a CPU, where PyTorch's own draws numbers one by one and costs more than the matrix products.

Here one random byte decides on a number, and a mask is all bits or none: an "and" with it is cheaper than a product.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speaker.model.attention import attend_fused
from speaker.model.cpu_kernels import WORDS, Attention, FeedForward, attend


class Dropout(nn.Module):
    """Zeroes each number with probability p in training and scales the others by 1 / (1 - p), also inside blocks.

    On a CPU p is rounded to a 256th, at least one and at most 255: 0.1 becomes 26/256. Masks are drawn afresh at each
    call; they follow from the last `reseed`. On other devices, and where `for_cpu` is False, this is PyTorch's own
    dropout.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.for_cpu = True
        self._dropped = min(max(round(256 * p), 1), 255) if p else 0
        self.scale = 256 / (256 - self._dropped)
        self._source = np.random.SFC64()

    def reseed(self, seed: int) -> None:
        """Start the masks that are drawn on the CPU anew."""
        self._source = np.random.SFC64(seed)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return residual + x with some numbers of x dropped."""
        if not (self.training and self.p and self.for_cpu and x.device.type == "cpu"):
            return residual + F.dropout(x, self.p, self.training)
        kept = self.draw_kept(x.shape, x.dtype)
        return _AddDropped.apply(residual, x, kept, self.scale)  # type: ignore[no-untyped-call]

    def feed_forward(self, x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
        """Return second(dropout(relu(first(x)))) for x (B, T, width)."""
        if not self._is_ours(x):
            return second(F.dropout(F.relu(first(x)), self.p, self.training))
        weights = first.weight, first.bias, second.weight, second.bias
        if not (self.training and self.p):
            return FeedForward.apply(x, *weights, None, 1.0)  # type: ignore[no-untyped-call]
        kept = self.draw_kept(torch.Size((x.shape[0] * x.shape[1], first.out_features)), x.dtype)
        return FeedForward.apply(x, *weights, kept, self.scale)  # type: ignore[no-untyped-call]

    def attend(self, heads: Tensor, bias: Tensor | None) -> Tensor:
        """Return softmax(query key^T / sqrt(d) + bias) value, with some of the softmax's numbers dropped.

        heads is (B, T, 3, nhead, d), query, key and value side by side; bias is (B, 1, 1, T), 0 or -infinity, or None.
        Returns (B, T, nhead * d).
        """
        if heads.device.type == "mps" and not self.training:
            return attend(heads, bias)  # nothing is fused there, and all scores of a long utterance are gigabytes
        if not self._is_ours(heads):
            on_cpu = self.for_cpu and heads.device.type == "cpu"
            return attend_fused(heads, bias, self.p if self.training else 0.0, any_width=on_cpu)
        if not self.training:
            return attend(heads, bias)
        draw = self.draw_kept if self.p else None
        return Attention.apply(heads, bias, draw, self.scale)  # type: ignore[no-untyped-call]

    def draw_kept(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return integers as wide as `dtype`: all bits set where a number is kept, none where it is dropped."""
        count = shape.numel()
        words = torch.from_numpy(self._source.random_raw((count + 7) // 8))
        kept = words.view(torch.int8)[:count].lt_(128 - self._dropped).neg_()  # a signed byte starts at -128
        return kept.to(WORDS[dtype]).view(shape)

    def _is_ours(self, x: Tensor) -> bool:
        """Tell whether we do a block here. What a model is exported with, float32 in evaluation, is PyTorch's own."""
        return self.for_cpu and x.device.type == "cpu" and (self.training or x.dtype == torch.bfloat16)


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return torch.add(residual, _and(x, kept), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return gradients[0], _and(gradients[0], ctx.saved_tensors[0]).mul_(ctx.scale), None, None


def _and(x: Tensor, kept: Tensor) -> Tensor:
    return (x.contiguous().view(kept.dtype) & kept).view(x.dtype)
