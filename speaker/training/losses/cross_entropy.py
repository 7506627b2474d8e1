"""The homework's loss: cross-entropy."""

import torch.nn.functional as F
from torch import Tensor, nn

from speaker.config import TrialConfig


class CrossEntropy(nn.Module):
    """The cross-entropy of logits, in nats.

    Every loss has this interface. In training mode a loss may use the labels as it likes, for a
    margin say; in evaluation mode it scores the logits as they are. Its own weights, if it has any,
    are learned and resumed with the model's, but they are no part of the model that is saved.
    """

    def __init__(self, config: TrialConfig, n_speakers: int) -> None:  # noqa: ARG002  # it has no weights
        super().__init__()

    def forward(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Return the mean or the "sum" over utterances; logits are float32 (B, n_speakers),
        labels int64 (B,).
        """
        return F.cross_entropy(logits, labels, reduction=reduction)
