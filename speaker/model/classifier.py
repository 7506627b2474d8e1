"""SpeakerClassifier: the homework's Transformer encoder over log-mel frames, with padding masked."""

import math

import torch
from torch import Tensor, nn

from speaker.config import TrialConfig
from speaker.model.dropout import Dropout

ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
}


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward block, equal to nn.TransformerEncoderLayer(batch_first=True) with ReLU inside.

    Written out, because the product's speed lives here and it must also export with both sizes dynamic.
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
        """Map x (B, T, d_model) to the same shape; bias (B, 1, 1, T) is 0 where a frame may be attended, else -inf."""
        if self.norm_first:
            x = self.dropout.add(x, self._attend(self.attention_norm(x), bias))
            return self.dropout.add(x, self._feed_forward(self.feedforward_norm(x)))
        x = self.attention_norm(self.dropout.add(x, self._attend(x, bias)))
        return self.feedforward_norm(self.dropout.add(x, self._feed_forward(x)))

    def _attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.nhead, -1))
        return self.attention_out(self.dropout.attend(heads, bias))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout.feed_forward(x, self.feedforward_in, self.feedforward_out)


class SpeakerClassifier(nn.Module):
    """Log-mel frames in, one logit per speaker out.

    Source: the sample code of Hung-yi Lee's ML 2023 homework 4: linear, encoder layers, mean over time, linear,
    activation, linear. Unlike it, padded frames are neither attended nor averaged, so that an utterance's logits do
    not depend on its batch mates.
    """

    def __init__(self, config: TrialConfig, n_mels: int, n_speakers: int) -> None:
        super().__init__()
        self.project = nn.Linear(n_mels, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config, self.dropout) for _ in range(config.num_layers))
        self.hidden = nn.Linear(config.d_model, config.d_model)
        self.activation = ACTIVATION_LAYERS[config.activation]()
        self.classify = nn.Linear(config.d_model, n_speakers)

    def forward(self, mels: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (B, n_speakers) for mels (B, T, n_mels) whose first lengths[b] frames count (None: all T)."""
        x = self.project(mels.to(self.project.weight.dtype))
        if lengths is None:
            return self._head(self._encode(x, None).mean(1))
        # torch.where would send its numbers to a GPU one by one, and wait; masked_fill hands them to the kernel.
        padding = torch.arange(mels.shape[1], device=mels.device) >= lengths[:, None]  # (B, T)
        x = self._encode(x, x.new_zeros(padding.shape).masked_fill_(padding, -math.inf)[:, None, None, :])
        x = x.masked_fill(padding[:, :, None], 0.0)
        return self._head((x.sum(1, dtype=torch.float32) / lengths[:, None]).to(x.dtype))

    def _encode(self, x: Tensor, bias: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, bias)
        return x

    def _head(self, pooled: Tensor) -> Tensor:
        return self.classify(self.activation(self.hidden(pooled)))


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable numbers in `model`."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters() if parameter.requires_grad)


def count_operations(config: TrialConfig, n_mels: int = 40, n_speakers: int = 600) -> float:
    """Return the floating-point operations of a step: the products' alone, twice as many backward as forward."""
    width, frames = config.d_model, config.segment_len
    layer = 2 * (width * 3 * width + width * width + 2 * width * config.dim_feedforward) + 4 * frames * width
    frame = 2 * n_mels * width + config.num_layers * layer
    head = 2 * (width * width + width * n_speakers)
    return 3.0 * config.batch_size * (frames * frame + head)
