"""Dropout that is cheap on a CPU, where PyTorch's own draws numbers one by one and costs more than the matrix products.

Here one random byte decides on a number, and a mask is all bits or none: an "and" with it is cheaper than a product.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORDS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # integers as wide


class Dropout(nn.Module):
    """Zeroes each number with probability p in training and scales the others by 1 / (1 - p).

    On a CPU p is rounded to a 256th, at least one and at most 255: 0.1 becomes 26/256. Masks are drawn afresh at each
    call; they follow from the last `reseed`. On other devices this is PyTorch's own dropout.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._dropped = min(max(round(256 * p), 1), 255) if p else 0
        self.scale = 256 / (256 - self._dropped)
        self._source = np.random.SFC64()

    def reseed(self, seed: int) -> None:
        """Start the masks that are drawn on the CPU anew."""
        self._source = np.random.SFC64(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Return x, of any shape, with some numbers dropped."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return _Drop.apply(x, self.draw_kept(x.shape, x.dtype), self.scale)  # type: ignore[no-untyped-call]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Return softmax(query key^T / sqrt(d) + bias) value, its probabilities dropped, on a CPU in training.

        The first three are (B, nhead, T, d), bias is (B, 1, 1, T) or None.
        """
        batch, heads, frames, width = query.shape
        kept = self.draw_kept(torch.Size((batch * heads, frames, frames)), query.dtype) if self.p else None
        flat = (tensor.reshape(batch * heads, frames, width) for tensor in (query, key, value))
        if bias is not None:
            bias = bias.expand(batch, heads, 1, frames).reshape(batch * heads, 1, frames)
        mixed = _Attend.apply(*flat, bias, kept, self.scale)  # type: ignore[no-untyped-call]
        return mixed.view(query.shape)

    def draw_kept(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return integers as wide as `dtype`: all bits set where a number is kept, none where it is dropped."""
        count = shape.numel()
        words = torch.from_numpy(self._source.random_raw((count + 7) // 8))
        kept = words.view(torch.int8)[:count].lt_(128 - self._dropped).neg_()  # a signed byte starts at -128
        return kept.to(WORDS[dtype]).view(shape)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _and(x, kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _and(gradients[0], ctx.saved_tensors[0]).mul_(ctx.scale), None, None


class _Attend(torch.autograd.Function):
    """Attention whose scalings are left to the matrix products, and whose gradients are made in place."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, kept: Tensor | None, scale: float
    ) -> Tensor:
        scores = _multiply(query, key.mT, query.shape[-1] ** -0.5)
        if bias is not None:
            scores += bias
        shares = scores.softmax(-1)
        dropped = shares if kept is None else _and(shares, kept)
        ctx.save_for_backward(query, key, value, kept, shares, dropped)
        ctx.scale = scale
        return _multiply(dropped, value, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, kept, shares, dropped = ctx.saved_tensors
        (mixed,) = gradients
        root = query.shape[-1] ** -0.5
        share = _multiply(mixed, value.mT, ctx.scale)
        if kept is not None:
            share.view(kept.dtype).bitwise_and_(kept)
        score = torch._softmax_backward_data(share, shares, -1, shares.dtype)
        return (
            _multiply(score, key, root), _multiply(score.mT, query, root), _multiply(dropped.mT, mixed, ctx.scale),
            None, None, None,
        )  # fmt: skip


def _and(x: Tensor, kept: Tensor) -> Tensor:
    return (x.contiguous().view(kept.dtype) & kept).view(x.dtype)


def _multiply(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """Return scale * one @ other, (B, n, k) and (B, k, m), scaled inside the product."""
    return torch.baddbmm(one.new_empty(1), one, other, beta=0, alpha=scale)
