"""Attention and the feed-forward block on a CPU,
with dropout inside and their gradients written out.

PyTorch passes over memory several times between two matrix multiplications. Here that work is done
in place, on the bits of the numbers, or inside a multiplication, and attention takes only as many
scores at a time as stay in a core's cache.

Shapes: B utterances, T frames, W numbers a frame, H heads of D numbers, N = B * H, F hidden
numbers.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

WORDS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # the integers of the same width
SCORES_AT_ONCE = 1 << 20  # of attention
DrawMask = Callable[[torch.Size, torch.dtype], Tensor]
"""Returns integers as wide as a dtype: all bits set where a number is kept, else none."""


class FeedForward(torch.autograd.Function):
    """dropout(relu(x first^T + first_bias)) second^T + second_bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, T, W)
        first: Tensor,  # (F, W)
        first_bias: Tensor,  # (F,)
        second: Tensor,  # (W, F)
        second_bias: Tensor,  # (W,)
        mask: Tensor | None,  # (B * T, F); None drops nothing
        scale: float,  # of what dropout keeps
    ) -> Tensor:
        """Return the block's output, (B, T, W)."""
        rows = x.flatten(0, 1)  # (B * T, W)
        hidden = torch.addmm(first_bias, rows, first.mT)  # (B * T, F)
        bits = hidden.view(WORDS[x.dtype])
        bits.clamp_(min=0)  # this is the ReLU: a float below 0 is an integer below 0
        if mask is not None:
            bits &= mask
        ctx.save_for_backward(rows, first, second, hidden)
        ctx.scale = scale
        out = torch.addmm(second_bias, hidden, second.mT, alpha=scale)
        return out.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, first, first_bias, second and second_bias."""
        rows, first, second, hidden = ctx.saved_tensors
        out = gradients[0].flatten(0, 1)  # (B * T, W)
        inner = _multiply(out, second, ctx.scale)  # (B * T, F)
        _zero_where_not_positive(inner, hidden)
        grad_x = _multiply(inner, first).view_as(gradients[0])
        grad_first = _multiply(inner.mT, rows)
        grad_second = _multiply(out.mT, hidden, ctx.scale)
        return grad_x, grad_first, inner.sum(0), grad_second, out.sum(0), None, None


class Attention(torch.autograd.Function):
    """dropout(softmax(query key^T / sqrt(D) + bias)) value."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,  # (B, T, 3, H, D)
        bias: Tensor | None,  # (B, 1, 1, T)
        draw_mask: DrawMask | None,  # None drops nothing
        scale: float,  # of what dropout keeps
    ) -> Tensor:
        """Return what each frame gathers from the others, (B, T, H * D)."""
        query, key, value = _fold_qkv(qkv)  # each (N, T, D)
        bias = _fold_bias(bias, qkv)
        context = torch.empty_like(query)
        saved = []
        for part in _slices(len(query), qkv.shape[1] ** 2):
            weights = _attention_weights(query[part], key[part], _part_of(bias, part))
            mask, thinned = _thin(weights, draw_mask)
            _multiply(thinned, value[part], scale, context[part])
            saved += [weights, mask, thinned]
        ctx.save_for_backward(query, key, value, *saved)
        ctx.scale, ctx.shape = scale, qkv.shape
        return _unfold(context, len(qkv)).flatten(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of qkv."""
        query, key, value, *saved = ctx.saved_tensors
        batch, frames, _, nhead, width = ctx.shape
        context = _fold(gradients[0].unflatten(2, (nhead, width)))  # (N, T, D)
        folded = query.new_empty(3, *query.shape)
        for number, part in enumerate(_slices(len(query), frames**2)):
            weights, mask, thinned = saved[3 * number : 3 * number + 3]
            grad_weights = _multiply(context[part], value[part].mT, ctx.scale)  # (n, T, T)
            if mask is not None:
                grad_weights.view(mask.dtype).bitwise_and_(mask)
            # PyTorch's own formula, without its checks. Should it go: w * (g - (w * g).sum(-1)).
            scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            _multiply(scores, key[part], width**-0.5, folded[0, part])
            _multiply(scores.mT, query[part], width**-0.5, folded[1, part])
            _multiply(thinned.mT, context[part], ctx.scale, folded[2, part])
        grad_qkv = folded.view(3, batch, nhead, frames, width).permute(1, 3, 0, 2, 4)
        return grad_qkv.contiguous(), None, None, None


def attend_in_slices(qkv: Tensor, bias: Tensor | None) -> Tensor:
    """Do what Attention does, without dropout and gradients, for utterances of any length.

    In bf16 this is faster than PyTorch's fused attention on a CPU.
    """
    query, key, value = _fold_qkv(qkv)
    bias = _fold_bias(bias, qkv)
    frames = qkv.shape[1]
    context = torch.empty_like(query)
    for part in _slices(len(query), frames**2):
        # An utterance may be so long that its scores are too many.
        for some in _slices(frames, frames):
            weights = _attention_weights(query[part, some], key[part], _part_of(bias, part))
            context[part, some] = weights @ value[part]
    return _unfold(context, len(qkv)).flatten(2)


def _attention_weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """(n, t, D), (n, T, D) and (n, 1, T) -> (n, t, T), whose last dimension sums to 1."""
    scores = _multiply(query, key.mT, query.shape[-1] ** -0.5)
    if bias is not None:
        scores += bias
    return scores.softmax(-1)


def _thin(weights: Tensor, draw_mask: DrawMask | None) -> tuple[Tensor | None, Tensor]:
    """Return a mask of dropout and the weights that it keeps; those that it drops are 0."""
    if draw_mask is None:
        return None, weights
    mask = draw_mask(weights.shape, weights.dtype)
    return mask, (weights.view(mask.dtype) & mask).view(weights.dtype)


def _zero_where_not_positive(x: Tensor, other: Tensor) -> None:
    """Zero the numbers of x, in place, where those of `other` (none is negative) are 0."""
    bits = other.view(WORDS[x.dtype])
    all_or_none = bits.neg().bitwise_right_shift_(8 * bits.itemsize - 1)  # all bits where other > 0
    x.view(bits.dtype).bitwise_and_(all_or_none)


def _slices(count: int, size: int) -> Iterator[slice]:
    """Cut `count` things of a size into slices of SCORES_AT_ONCE at most, or of one thing."""
    step = max(1, SCORES_AT_ONCE // size)
    for start in range(0, count, step):
        yield slice(start, start + step)


def _part_of(bias: Tensor | None, part: slice) -> Tensor | None:
    return None if bias is None else bias[part]


def _fold_qkv(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3, H, D) -> three times (N, T, D)."""
    query, key, value = (_fold(part) for part in qkv.unbind(2))
    return query, key, value


def _fold_bias(bias: Tensor | None, qkv: Tensor) -> Tensor | None:
    """(B, 1, 1, T) -> (N, 1, T)."""
    if bias is None:
        return None
    batch, frames, _, nhead, _ = qkv.shape
    return bias.expand(batch, nhead, 1, frames).reshape(-1, 1, frames)


def _fold(x: Tensor) -> Tensor:
    """(B, T, H, D) -> (N, T, D)."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _unfold(x: Tensor, batch: int) -> Tensor:
    """(N, T, D) -> (B, T, H, D)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def _multiply(one: Tensor, other: Tensor, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
    """Return scale * one @ other for two matrices or two batches of them, scaled on the way."""
    product = torch.addmm if one.dim() == 2 else torch.baddbmm
    return product(one.new_empty(1), one, other, beta=0, alpha=scale, out=out)
