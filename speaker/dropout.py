"""Dropout that is cheap on a CPU, where PyTorch's own draws numbers one by one and costs more than the matrix products.

Here one random byte decides on a number, and a mask is all bits or none: an "and" with it is cheaper than a product.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLICE = 1 << 21  # numbers of attention's scores at a time
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
        if not self._is_ours(x):
            return F.dropout(x, self.p, self.training)
        return _Drop.apply(x, self.draw_kept(x.shape, x.dtype), self.scale)  # type: ignore[no-untyped-call]

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return residual + x with some numbers of x dropped."""
        if not self._is_ours(x):
            return residual + self(x)
        kept = self.draw_kept(x.shape, x.dtype)
        return _AddDropped.apply(residual, x, kept, self.scale)  # type: ignore[no-untyped-call]

    def relu(self, x: Tensor) -> Tensor:
        """Return relu(x) with some numbers dropped."""
        if not self._is_ours(x):
            return self(F.relu(x))
        kept = self.draw_kept(x.shape, x.dtype)
        kept &= x.detach().view(kept.dtype).clone().gt_(0).neg_()  # a number above 0 is one as an integer, too
        return _Drop.apply(x, kept, self.scale)  # type: ignore[no-untyped-call]

    def attend(self, heads: Tensor, bias: Tensor | None) -> Tensor:
        """Return softmax(query key^T / sqrt(d) + bias) value, with some of the softmax's numbers dropped.

        heads is (B, T, 3, nhead, d), query, key and value side by side; bias is (B, 1, 1, T), 0 or -infinity, or None.
        Returns (B, T, nhead * d).
        """
        if heads.device.type == "cpu" and self.training:
            batch, frames, _, nhead, _ = heads.shape
            kept = self.draw_kept(torch.Size((batch * nhead, frames, frames)), heads.dtype) if self.p else None
            return _Attend.apply(heads, bias, kept, self.scale)  # type: ignore[no-untyped-call]
        if heads.device.type == "cpu" and heads.dtype == torch.bfloat16:
            return _attend_in_slices(heads, bias)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, nhead, T, d)
        dropped = self.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropped)
        return mixed.transpose(1, 2).flatten(2)

    def draw_kept(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return integers as wide as `dtype`: all bits set where a number is kept, none where it is dropped."""
        count = shape.numel()
        words = torch.from_numpy(self._source.random_raw((count + 7) // 8))
        kept = words.view(torch.int8)[:count].lt_(128 - self._dropped).neg_()  # a signed byte starts at -128
        return kept.to(WORDS[dtype]).view(shape)

    def _is_ours(self, x: Tensor) -> bool:
        return self.training and self.p > 0 and x.device.type == "cpu"


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _and(x, kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _and(gradients[0], ctx.saved_tensors[0]).mul_(ctx.scale), None, None


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return torch.add(residual, _and(x, kept), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return gradients[0], _and(gradients[0], ctx.saved_tensors[0]).mul_(ctx.scale), None, None


class _Attend(torch.autograd.Function):
    """Attention whose scalings are left to the matrix products, and whose gradients are made in place."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, bias: Tensor | None, kept: Tensor | None, scale: float) -> Tensor:
        batch, _, _, nhead, width = heads.shape
        query, key, value = (_fold(part) for part in heads.unbind(2))
        scores = _multiply(query, key.mT, width**-0.5)
        if bias is not None:
            scores.view(batch, nhead, *scores.shape[1:]).add_(bias)
        shares = scores.softmax(-1)
        dropped = shares if kept is None else _and(shares, kept)
        ctx.save_for_backward(query, key, value, kept, shares, dropped)
        ctx.scale, ctx.shape = scale, heads.shape
        mixed = _multiply(dropped, value, scale)
        return _unfold(mixed, batch).flatten(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        query, key, value, kept, shares, dropped = ctx.saved_tensors
        batch, _, _, nhead, width = ctx.shape
        mixed = _fold(gradients[0].unflatten(2, (nhead, width)))
        share = _multiply(mixed, value.mT, ctx.scale)
        if kept is not None:
            share.view(kept.dtype).bitwise_and_(kept)
        score = torch._softmax_backward_data(share, shares, -1, shares.dtype)
        heads = mixed.new_empty(ctx.shape)
        heads[:, :, 0] = _unfold(_multiply(score, key, width**-0.5), batch)
        heads[:, :, 1] = _unfold(_multiply(score.mT, query, width**-0.5), batch)
        heads[:, :, 2] = _unfold(_multiply(dropped.mT, mixed, ctx.scale), batch)
        return heads, None, None, None


def _attend_in_slices(heads: Tensor, bias: Tensor | None) -> Tensor:
    """Attend as many frames at a time as stay in a core's cache; in bf16 that beats PyTorch's fused attention."""
    batch, frames, _, nhead, width = heads.shape
    query, key, value = (_fold(part) for part in heads.unbind(2))
    if bias is not None:
        bias = bias.expand(batch, nhead, 1, frames).reshape(-1, 1, frames)
    most = max(1, SLICE // frames)  # frames that attend at once
    mixed = torch.empty_like(query)
    for start in range(0, len(query), rows := max(1, most // frames)):
        part = slice(start, start + rows)
        for first in range(0, frames, most):
            some = slice(first, first + most)
            scores = _multiply(query[part, some], key[part].mT, width**-0.5)
            if bias is not None:
                scores += bias[part]
            mixed[part, some] = scores.softmax(-1) @ value[part]
    return _unfold(mixed, batch).flatten(2)


def _and(x: Tensor, kept: Tensor) -> Tensor:
    return (x.contiguous().view(kept.dtype) & kept).view(x.dtype)


def _fold(x: Tensor) -> Tensor:
    """(B, T, nhead, d) -> (B * nhead, T, d)."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _unfold(x: Tensor, batch: int) -> Tensor:
    """(B * nhead, T, d) -> (B, T, nhead, d)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def _multiply(one: Tensor, other: Tensor, scale: float) -> Tensor:
    """Return scale * one @ other, (B, n, k) and (B, k, m), scaled inside the product."""
    return torch.baddbmm(one.new_empty(1), one, other, beta=0, alpha=scale)
