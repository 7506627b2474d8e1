"""Dropout that is cheap on a CPU, where PyTorch's own costs more than the matrix multiplications.

PyTorch draws its random numbers one by one. Here one random byte decides on a number, and a mask is
made of all bits or none, because an "and" with it is cheaper than a multiplication.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speaker.model.cpu_kernels import WORDS


class Dropout(nn.Module):
    """Zeroes each number with probability p in training and scales the others by 1 / (1 - p).

    On a CPU p is rounded to a 256th, at least one and at most 255 of them: 0.1 becomes 26/256.
    Masks are drawn afresh at each call and follow from the last `reseed`. On other devices, and
    where `for_cpu` is False, this is PyTorch's own dropout.
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
        """Return residual + dropout(x)."""
        if not (self.training and self.p and self.for_cpu and x.device.type == "cpu"):
            return residual + F.dropout(x, self.p, self.training)
        mask = self.draw_mask(x.shape, x.dtype)
        return _AddDropped.apply(residual, x, mask, self.scale)  # type: ignore[no-untyped-call]

    def draw_mask(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return integers as wide as `dtype`: all bits set where a number is kept, else none."""
        count = shape.numel()
        words = torch.from_numpy(self._source.random_raw((count + 7) // 8))
        signed = words.view(torch.int8)[:count]  # each is from -128 to 127
        mask = signed.lt_(128 - self._dropped).neg_()
        return mask.to(WORDS[dtype]).view(shape)

    def uses_cpu_kernels(self, x: Tensor) -> bool:
        """Tell whether blocks with this dropout use our own CPU kernels for x.

        In evaluation they do so in bf16 only: an exported model must consist of PyTorch's own
        operations.
        """
        on_cpu = self.for_cpu and x.device.type == "cpu"
        return on_cpu and (self.training or x.dtype == torch.bfloat16)


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return torch.add(residual, _and(x, mask), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return gradients[0], _and(gradients[0], mask).mul_(ctx.scale), None, None


def _and(x: Tensor, mask: Tensor) -> Tensor:
    return (x.contiguous().view(mask.dtype) & mask).view(x.dtype)
