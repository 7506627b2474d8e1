"""Multi-head attention: by our own kernels on a CPU, by PyTorch's fused kernels elsewhere.

Shapes: B utterances, T frames, H heads of D numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from speaker.model.cpu_kernels import Attention, attend_in_slices
from speaker.model.dropout import Dropout

HEAD_UNIT = {torch.float32: 4, torch.float16: 8, torch.bfloat16: 8}
"""A GPU's fused kernels take heads whose width is a multiple of 16 bytes."""


def attend(qkv: Tensor, bias: Tensor | None, dropout: Dropout) -> Tensor:
    """Return dropout(softmax(query key^T / sqrt(D) + bias)) value, (B, T, H * D).

    qkv is (B, T, 3, H, D): query, key and value side by side. bias is (B, 1, 1, T), 0 where a frame
    may be attended and -infinity elsewhere, or None.
    """
    if dropout.uses_cpu_kernels(qkv):
        if not dropout.training:
            return attend_in_slices(qkv, bias)
        draw_mask = dropout.draw_mask if dropout.p else None
        return Attention.apply(qkv, bias, draw_mask, dropout.scale)  # type: ignore[no-untyped-call]
    if qkv.device.type == "mps" and not dropout.training:
        # Nothing is fused there, and all scores of a long utterance would take gigabytes.
        return attend_in_slices(qkv, bias)
    any_width = dropout.for_cpu and qkv.device.type == "cpu"
    return attend_fused(qkv, bias, dropout.p if dropout.training else 0.0, any_width)


def attend_fused(
    qkv: Tensor, bias: Tensor | None, dropped: float, any_width: bool = False
) -> Tensor:
    """Do the same by PyTorch's fused kernels, which never store the scores of all pairs of frames.

    `dropped` is the probability of dropping. Unless the kernels take `any_width`, heads are padded
    with zeros to a width that they take. That changes no score as long as the scale stays that of
    the true width.
    """
    width = qkv.shape[-1]
    missing = -width % HEAD_UNIT[qkv.dtype]
    if missing and not any_width:
        qkv = F.pad(qkv, (0, missing))
    query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))  # each (B, H, T, D)
    context = F.scaled_dot_product_attention(query, key, value, bias, dropped, scale=width**-0.5)
    return context[..., :width].transpose(1, 2).flatten(2)
