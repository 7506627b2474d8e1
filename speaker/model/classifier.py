"""SpeakerClassifier: log-mel frames to one logit per speaker, of blocks that are chosen by name."""

import math

from torch import Tensor, nn

from speaker.config import TrialConfig
from speaker.model.dropout import Dropout
from speaker.model.encoders.transformer import TransformerEncoder
from speaker.model.padding import find_padding
from speaker.model.poolings.attentive import AttentivePooling
from speaker.model.poolings.mean import MeanPooling

ENCODER_LAYERS = {"transformer": TransformerEncoder}
POOLING_LAYERS: dict[str, type[nn.Module]] = {"mean": MeanPooling, "attentive": AttentivePooling}
ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
}


class SpeakerClassifier(nn.Module):
    """Log-mel frames in, one logit per speaker out.

    Source: the sample code of Hung-yi Lee's ML 2023 homework 4: linear, encoder, mean over time,
    linear, activation, linear. Unlike there, padded frames are neither attended nor pooled, so that
    an utterance's logits do not depend on the other utterances of its batch.
    """

    def __init__(self, config: TrialConfig, n_mels: int, n_speakers: int) -> None:
        super().__init__()
        self.project = nn.Linear(n_mels, config.d_model)
        self.dropout = Dropout(config.dropout)
        # Saved weights know the encoder by the name `layers`.
        self.layers = ENCODER_LAYERS[config.encoder](config, self.dropout)
        self.pool = POOLING_LAYERS[config.pooling](config)
        self.hidden = nn.Linear(config.d_model, config.d_model)
        self.activation = ACTIVATION_LAYERS[config.activation]()
        self.classify = nn.Linear(config.d_model, n_speakers)

    def forward(self, mels: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (B, n_speakers) for mels (B, T, n_mels).

        Only the first lengths[b] frames of utterance b count; lengths is int64 (B,), or None where
        all do.
        """
        padding = find_padding(lengths, mels.shape[1])
        x = self.project(mels.to(self.project.weight.dtype))
        pooled = self.pool(self.layers(x, padding), padding)
        return self.classify(self.activation(self.hidden(pooled)))


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable numbers in `model`."""
    return sum(math.prod(each.shape) for each in model.parameters() if each.requires_grad)


def count_operations(config: TrialConfig, n_mels: int = 40, n_speakers: int = 600) -> float:
    """Return the floating-point operations of a step, in its matrix multiplications alone.

    The backward pass takes twice as many as the forward pass.
    """
    width, frames = config.d_model, config.segment_len
    linear = width * 3 * width + width * width + 2 * width * config.dim_feedforward
    layer = 2 * linear + 4 * frames * width
    frame = 2 * n_mels * width + config.num_layers * layer
    head = 2 * (width * width + width * n_speakers)
    return 3.0 * config.batch_size * (frames * frame + head)
