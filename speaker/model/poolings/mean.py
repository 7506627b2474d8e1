"""The homework's pooling: the mean over time."""

import torch
from torch import Tensor, nn

from speaker.config import TrialConfig
from speaker.model.padding import Padding


class MeanPooling(nn.Module):
    """The mean of an utterance's frames."""

    def __init__(self, config: TrialConfig) -> None:  # noqa: ARG002  # it has no weights
        super().__init__()

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        """Map x (B, T, d_model) to (B, d_model)."""
        if padding is None:
            return x.mean(1)
        x = x.masked_fill(padding.mask[:, :, None], 0.0)
        total = x.sum(1, dtype=torch.float32)
        return (total / padding.lengths[:, None]).to(x.dtype)
