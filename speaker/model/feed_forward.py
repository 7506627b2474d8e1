"""An encoder layer's feed-forward block: by our own kernels on a CPU, by PyTorch's elsewhere."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speaker.model.cpu_kernels import FeedForward
from speaker.model.dropout import Dropout


def feed_forward(x: Tensor, first: nn.Linear, second: nn.Linear, dropout: Dropout) -> Tensor:
    """Return second(dropout(relu(first(x)))) for x (B, T, width)."""
    if not dropout.uses_cpu_kernels(x):
        return second(F.dropout(F.relu(first(x)), dropout.p, dropout.training))
    mask, scale = None, 1.0
    if dropout.training and dropout.p:
        rows = x.shape[0] * x.shape[1]
        mask, scale = (
            dropout.draw_mask(torch.Size((rows, first.out_features)), x.dtype),
            dropout.scale,
        )
    weights = first.weight, first.bias, second.weight, second.bias
    return FeedForward.apply(x, *weights, mask, scale)  # type: ignore[no-untyped-call]
