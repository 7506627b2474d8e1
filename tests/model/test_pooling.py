import pytest
import torch

from speaker.config import HOMEWORK_BASELINE, POOLINGS
from speaker.model.classifier import POOLING_LAYERS, SpeakerClassifier, count_parameters
from speaker.model.padding import find_padding
from speaker.model.poolings.attentive import AttentivePooling
from tests.helpers import TINY

X = torch.randn(3, 7, TINY.d_model, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([7, 4, 1])


def test_every_pooling_has_a_name() -> None:
    assert tuple(POOLING_LAYERS) == POOLINGS


@pytest.mark.parametrize("padded", [False, True])
def test_attentive_pooling_is_its_formula(padded: bool) -> None:
    pool = AttentivePooling(TINY)
    got = pool(X, find_padding(LENGTHS if padded else None, 7))
    for number, x in enumerate(X):
        x = x[: LENGTHS[number]] if padded else x
        scores = torch.stack([frame @ pool.score.weight[0] for frame in x])
        weights = scores.exp() / scores.exp().sum()
        expected = sum(weight * frame for weight, frame in zip(weights, x, strict=True))
        assert torch.allclose(got[number], expected, atol=1e-6)


@pytest.mark.parametrize("name", POOLINGS)
def test_masked_frames_change_nothing(name: str) -> None:
    pool = POOLING_LAYERS[name](TINY)
    padding = find_padding(LENGTHS, 7)
    assert padding is not None
    changed = X.masked_fill(padding.mask[:, :, None], 1e6)
    assert torch.equal(pool(X, padding), pool(changed, padding))


def test_attentive_pooling_adds_one_weight_for_each_number_of_a_frame() -> None:
    attentive = HOMEWORK_BASELINE.replace(pooling="attentive")
    sizes = [
        count_parameters(SpeakerClassifier(config, 40, 600))
        for config in (HOMEWORK_BASELINE, attentive)
    ]
    assert sizes == [125_896, 125_896 + 80]


def test_every_weight_learns() -> None:
    model = SpeakerClassifier(TINY.replace(pooling="attentive"), 40, 4)
    model(torch.randn(2, 9, 40), torch.tensor([9, 5])).square().sum().backward()
    assert all(bool(each.grad is not None and each.grad.any()) for each in model.parameters())
