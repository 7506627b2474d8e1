"""Attention and the feed-forward block as a CPU does them, with dropout inside and their gradients written out.

What PyTorch does between two matrix products in passes over memory of their own is done here in place, as integers, or
within a product, and for as many scores of attention at a time as stay in a core's cache.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

WORDS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # integers as wide
SLICE = 1 << 20  # scores of attention at a time
DrawKept = Callable[[torch.Size, torch.dtype], Tensor]  # integers as wide as a dtype: all bits set or none


class FeedForward(torch.autograd.Function):
    """relu(x first^T + bias), some numbers dropped and the others scaled, times second^T, + bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor,
        kept: Tensor | None, scale: float,
    ) -> Tensor:  # fmt: skip
        """Map x (B, T, width) to the same shape; `kept` is (B * T, hidden), or None where nothing is dropped."""
        rows = x.flatten(0, 1)
        hidden = torch.addmm(first_bias, rows, first.mT)
        bits = hidden.view(WORDS[x.dtype]).clamp_(min=0)  # a float below 0 is an integer below 0
        if kept is not None:
            bits &= kept
        ctx.save_for_backward(rows, first, second, hidden)
        ctx.scale = scale
        return torch.addmm(second_bias, hidden, second.mT, alpha=scale).view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, first, its bias, second and its bias."""
        rows, first, second, hidden = ctx.saved_tensors
        out = gradients[0].flatten(0, 1)
        inner = _multiply(out, second, ctx.scale)
        bits = hidden.view(WORDS[inner.dtype])
        inner.view(bits.dtype).bitwise_and_(bits.neg().bitwise_right_shift_(8 * bits.itemsize - 1))  # where it is > 0
        return (
            _multiply(inner, first).view_as(gradients[0]),
            _multiply(inner.mT, rows),
            inner.sum(0),
            _multiply(out.mT, hidden, ctx.scale),
            out.sum(0),
            None,
            None,
        )


class Attention(torch.autograd.Function):
    """softmax(query key^T / sqrt(d) + bias) value, some of the softmax's numbers dropped and the others scaled."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, bias: Tensor | None, draw_kept: DrawKept | None, scale: float) -> Tensor:
        """Map heads (B, T, 3, nhead, d) to (B, T, nhead * d); bias is (B, 1, 1, T) or None; None draws nothing."""
        query, key, value = _fold_heads(heads)
        bias = _fold_bias(bias, heads)
        mixed = torch.empty_like(query)
        kept_back = []
        for part in _slices(len(query), heads.shape[1] ** 2):
            shares = dropped = _share(query[part], key[part], None if bias is None else bias[part])
            kept = None
            if draw_kept is not None:
                kept = draw_kept(shares.shape, shares.dtype)
                dropped = (shares.view(kept.dtype) & kept).view(shares.dtype)
            _multiply(dropped, value[part], scale, mixed[part])
            kept_back += [shares, kept, dropped]
        ctx.save_for_backward(query, key, value, *kept_back)
        ctx.scale, ctx.shape = scale, heads.shape
        return _unfold(mixed, len(heads)).flatten(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of heads."""
        query, key, value, *kept_back = ctx.saved_tensors
        batch, frames, _, nhead, width = ctx.shape
        mixed = _fold(gradients[0].unflatten(2, (nhead, width)))
        folded = query.new_empty(3, *query.shape)
        for number, part in enumerate(_slices(len(query), frames**2)):
            shares, kept, dropped = kept_back[3 * number : 3 * number + 3]
            share = _multiply(mixed[part], value[part].mT, ctx.scale)
            if kept is not None:
                share.view(kept.dtype).bitwise_and_(kept)
            score = torch._softmax_backward_data(share, shares, -1, shares.dtype)
            _multiply(score, key[part], width**-0.5, folded[0, part])
            _multiply(score.mT, query[part], width**-0.5, folded[1, part])
            _multiply(dropped.mT, mixed[part], ctx.scale, folded[2, part])
        return folded.view(3, batch, nhead, frames, width).permute(1, 3, 0, 2, 4).contiguous(), None, None, None


def attend(heads: Tensor, bias: Tensor | None) -> Tensor:
    """Do what Attention does, without dropout or gradients, for utterances of any length.

    In bf16 this beats PyTorch's fused attention.
    """
    query, key, value = _fold_heads(heads)
    bias = _fold_bias(bias, heads)
    frames = heads.shape[1]
    mixed = torch.empty_like(query)
    for part in _slices(len(query), frames**2):
        for some in _slices(frames, frames):  # of an utterance so long that its scores are too many
            shares = _share(query[part, some], key[part], None if bias is None else bias[part])
            mixed[part, some] = shares @ value[part]
    return _unfold(mixed, len(heads)).flatten(2)


def _share(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """(N, n, d), (N, T, d) and (N, 1, T) -> (N, n, T), whose last dimension sums to 1."""
    scores = _multiply(query, key.mT, query.shape[-1] ** -0.5)
    if bias is not None:
        scores += bias
    return scores.softmax(-1)


def _slices(count: int, size: int) -> Iterator[slice]:
    """Cut `count` things of a size into slices of at most SLICE together, or of one thing."""
    step = max(1, SLICE // size)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _fold_heads(heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (_fold(part) for part in heads.unbind(2))
    return query, key, value


def _fold_bias(bias: Tensor | None, heads: Tensor) -> Tensor | None:
    """(B, 1, 1, T) -> (B * nhead, 1, T)."""
    if bias is None:
        return None
    batch, frames, _, nhead, _ = heads.shape
    return bias.expand(batch, nhead, 1, frames).reshape(-1, 1, frames)


def _fold(x: Tensor) -> Tensor:
    """(B, T, nhead, d) -> (B * nhead, T, d)."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _unfold(x: Tensor, batch: int) -> Tensor:
    """(B * nhead, T, d) -> (B, T, nhead, d)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def _multiply(one: Tensor, other: Tensor, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
    """Return scale * one @ other, of two matrices or of batches of them, scaled inside the product."""
    product = torch.addmm if one.dim() == 2 else torch.baddbmm
    return product(one.new_empty(1), one, other, beta=0, alpha=scale, out=out)
