"""The homework's Transformer encoder, with padded frames masked."""

import math

from torch import Tensor, nn

from speaker.config import TrialConfig
from speaker.model.attention import attend
from speaker.model.dropout import Dropout
from speaker.model.feed_forward import feed_forward
from speaker.model.padding import Padding


class TransformerEncoder(nn.ModuleList):
    """`num_layers` encoder layers. Padded frames are not attended."""

    def __init__(self, config: TrialConfig, dropout: Dropout) -> None:
        super().__init__(EncoderLayer(config, dropout) for _ in range(config.num_layers))

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        """Map x (B, T, d_model) to the same shape."""
        bias = None if padding is None else _attention_bias(x, padding)
        for layer in self:
            x = layer(x, bias)
        return x


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward block with a ReLU inside.

    Equal to nn.TransformerEncoderLayer(batch_first=True). It is written out because the speed of
    training is decided here, and because it must export with both sizes dynamic.
    """

    def __init__(self, config: TrialConfig, dropout: Dropout) -> None:
        super().__init__()
        width = config.d_model
        self.nhead = config.nhead
        self.norm_first = config.norm_first
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feedforward_in = nn.Linear(width, config.dim_feedforward)
        self.feedforward_out = nn.Linear(config.dim_feedforward, width)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward_norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.qkv.weight)  # as nn.MultiheadAttention does
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.attention_out.bias)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Map x (B, T, d_model) to the same shape; bias is `attend`'s."""
        if self.norm_first:
            x = self.dropout.add(x, self._attend(self.attention_norm(x), bias))
            return self.dropout.add(x, self._feed_forward(self.feedforward_norm(x)))
        x = self.attention_norm(self.dropout.add(x, self._attend(x, bias)))
        return self.feedforward_norm(self.dropout.add(x, self._feed_forward(x)))

    def _attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.nhead, -1))  # (B, T, 3, nhead, d_model / nhead)
        return self.attention_out(attend(qkv, bias, self.dropout))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return feed_forward(x, self.feedforward_in, self.feedforward_out, self.dropout)


def _attention_bias(x: Tensor, padding: Padding) -> Tensor:
    """Return 0 for frames that may be attended and -infinity for the others, (B, 1, 1, T)."""
    # torch.where would send its two numbers to a GPU and wait; masked_fill_ hands them to the
    # kernel.
    bias = x.new_zeros(padding.mask.shape).masked_fill_(padding.mask, -math.inf)
    return bias[:, None, None, :]
