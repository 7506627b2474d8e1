"""Self-attention pooling: the frames say themselves how much each of them counts."""

import math

from torch import Tensor, nn

from speaker.config import TrialConfig
from speaker.model.padding import Padding


class AttentivePooling(nn.Module):
    """A weighted mean of an utterance's frames:
    sum over t of w[t] x[t] with w = softmax over t of (score . x[t]).

    Source: P. Safari, M. India and J. Hernando, "Self-Attention Encoding and Pooling for Speaker
    Recognition", Interspeech 2020. The course's boss baseline uses it.
    """

    def __init__(self, config: TrialConfig) -> None:
        super().__init__()
        self.score = nn.Linear(config.d_model, 1, bias=False)  # a bias would not change the weights

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        """Map x (B, T, d_model) to (B, d_model)."""
        scores = self.score(x).squeeze(-1).float()  # (B, T)
        if padding is not None:
            scores = scores.masked_fill(padding.mask, -math.inf)
        weights = scores.softmax(1).to(x.dtype)
        return (weights[:, None, :] @ x).squeeze(1)
