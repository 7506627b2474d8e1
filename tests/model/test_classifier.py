import itertools

import pytest
import torch
from torch import Tensor, nn

from speaker.config import ACTIVATIONS, HOMEWORK_BASELINE, HOMEWORK_EDITED, TrialConfig
from speaker.model.classifier import ACTIVATION_LAYERS, SpeakerClassifier, count_parameters
from tests.helpers import TINY

ACTIVATION_MODULES = [nn.Sigmoid(), nn.ReLU(), nn.GELU(), nn.Tanh(), nn.SiLU()]


class Reference(nn.Module):
    """The homework's model from PyTorch's own parts, without padding."""

    def __init__(self, config: TrialConfig, speakers: int) -> None:
        super().__init__()
        self.prenet = nn.Linear(40, config.d_model)
        self.encoder = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    config.d_model, config.nhead, config.dim_feedforward, config.dropout,
                    batch_first=True, norm_first=config.norm_first,
                )
                for _ in range(config.num_layers)
            )
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(config.d_model, config.d_model),
            ACTIVATION_MODULES[ACTIVATIONS.index(config.activation)],
            nn.Linear(config.d_model, speakers),
        )

    def forward(self, mels: Tensor) -> Tensor:
        return self.head(self.encoder(self.prenet(mels)).mean(dim=1))


def copy_weights(model: SpeakerClassifier, reference: Reference) -> None:
    """Give the reference our weights, which lie in the same order but for the names."""
    names = {
        "qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias",
        "attention_out": "self_attn.out_proj", "feedforward_in": "linear1", "feedforward_out": "linear2",
        "attention_norm": "norm1", "feedforward_norm": "norm2", "layers.": "encoder.", "project.": "prenet.",
        "hidden.": "head.0.", "classify.": "head.2.",
    }  # fmt: skip
    weights = {}
    for name, value in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = value
    reference.load_state_dict(weights)


def random_mels(batch: int, frames: int) -> Tensor:
    return torch.randn(batch, frames, 40, generator=torch.Generator().manual_seed(frames)) * 3


def test_the_baseline_has_the_homeworks_parameters() -> None:
    assert count_parameters(SpeakerClassifier(HOMEWORK_BASELINE, 40, 600)) == 125_896
    assert count_parameters(Reference(HOMEWORK_EDITED, 600)) == count_parameters(
        SpeakerClassifier(HOMEWORK_EDITED, 40, 600)
    )


@pytest.mark.parametrize(
    "config",
    [HOMEWORK_BASELINE, HOMEWORK_EDITED, HOMEWORK_BASELINE.replace(num_layers=3, norm_first=True)]
    + [TINY.replace(activation=activation) for activation in ACTIVATIONS],
    ids=lambda config: config.label(),
)
def test_equals_pytorchs_own_layers(config: TrialConfig) -> None:
    torch.manual_seed(0)
    model, reference = SpeakerClassifier(config, 40, 30).eval(), Reference(config, 30).eval()
    copy_weights(model, reference)
    for frames in (1, 128):
        mels = random_mels(3, frames)
        with torch.no_grad():
            assert torch.allclose(model(mels), reference(mels), atol=1e-5, rtol=0)


def test_gradients_equal_pytorchs_too() -> None:
    torch.manual_seed(0)
    config = TINY.replace(num_layers=2, dropout=0.0)
    model, reference = SpeakerClassifier(config, 40, 30), Reference(config, 30)
    copy_weights(model, reference)
    mels = random_mels(4, 50)
    model(mels).square().mean().backward()
    reference(mels).square().mean().backward()
    ours, theirs = model.project.weight.grad, reference.prenet.weight.grad
    assert ours is not None
    assert theirs is not None
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_layers", [1, 2, 6])
def test_every_layer_learns_and_starts_on_its_own(num_layers: int) -> None:
    torch.manual_seed(0)
    model = SpeakerClassifier(TINY.replace(num_layers=num_layers), 40, 30)
    model(random_mels(4, 50), torch.tensor([50, 3, 20, 1])).square().mean().backward()
    assert len(model.layers) == num_layers
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    for one, other in itertools.combinations(model.layers, 2):
        assert not torch.equal(one.get_parameter("qkv.weight"), other.get_parameter("qkv.weight"))


def test_an_utterance_does_not_hear_its_batch_mates_or_its_padding() -> None:
    torch.manual_seed(0)
    model = SpeakerClassifier(HOMEWORK_BASELINE.replace(num_layers=2), 40, 30).eval()
    mels, lengths = random_mels(5, 200), torch.tensor([200, 1, 50, 128, 199])
    with torch.no_grad():
        together = model(mels, lengths)
        mels[2, 50:] = 1e4
        assert torch.allclose(model(mels, lengths), together, atol=1e-5, rtol=0)
        for i, length in enumerate(lengths.tolist()):
            alone = model(mels[i : i + 1, :length])
            assert torch.allclose(alone[0], together[i], atol=1e-5, rtol=0)


def test_every_activation_has_its_layer() -> None:
    assert tuple(ACTIVATION_LAYERS) == ACTIVATIONS
    outputs = set()
    for activation in ACTIVATIONS:
        torch.manual_seed(0)
        model = SpeakerClassifier(TINY.replace(activation=activation), 40, 30).eval()
        outputs.add(round(float(model(random_mels(1, 20)).detach().sum()), 6))
    assert len(outputs) == len(ACTIVATIONS)
