"""Attention by PyTorch's fused kernels, which never store the scores of all pairs of frames, for heads of any width."""

import torch
import torch.nn.functional as F
from torch import Tensor

HEAD_UNIT = {torch.float32: 4, torch.float16: 8, torch.bfloat16: 8}  # a GPU's kernels take multiples of 16 bytes


def attend_fused(heads: Tensor, bias: Tensor | None, dropped: float, any_width: bool = False) -> Tensor:
    """Return softmax(query key^T / sqrt(d) + bias) value, each number of the softmax dropped with a probability.

    heads is (B, T, 3, nhead, d), query, key and value side by side; bias is (B, 1, 1, T), 0 or -infinity, or None.
    Returns (B, T, nhead * d). But where kernels take `any_width`, heads are padded with zeros to a width that they
    take: that changes no score, as long as the scale stays that of the true width.
    """
    width = heads.shape[-1]
    if (missing := -width % HEAD_UNIT[heads.dtype]) and not any_width:
        heads = F.pad(heads, (0, missing))
    query, key, value = (part.transpose(1, 2) for part in heads.unbind(2))  # each (B, nhead, T, d)
    mixed = F.scaled_dot_product_attention(query, key, value, bias, dropped, scale=width**-0.5)
    return mixed[..., :width].transpose(1, 2).flatten(2)
