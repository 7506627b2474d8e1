import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speaker.model.attention import attend
from speaker.model.dropout import Dropout
from speaker.model.feed_forward import feed_forward


def seeded(p: float, seed: int = 0) -> Dropout:
    dropout = Dropout(p)
    dropout.reseed(seed)
    return dropout


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_feed_forward_block_and_its_gradients_are_the_textbooks(p: float) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(3, 11, 10).requires_grad_(), torch.randn(3, 11, 10)
    first, second = nn.Linear(10, 14), nn.Linear(14, 10)
    ours = feed_forward(x, first, second, seeded(p))
    dropout = seeded(p)
    mask = (dropout.draw_mask(torch.Size((33, 14)), torch.float32) != 0).view(3, 11, 14) if p else 1
    plain = second(F.relu(first(x)) * mask * dropout.scale)
    assert torch.allclose(ours, plain, atol=1e-5)
    of = (x, *first.parameters(), *second.parameters())
    for got, wanted in zip(
        *(torch.autograd.grad(y, of, gradient) for y in (ours, plain)), strict=True
    ):
        assert torch.allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_in_bf16_blocks_are_as_near_as_bf16_is(training: bool) -> None:
    torch.manual_seed(0)
    x, qkv = torch.randn(3, 11, 16), torch.randn(3, 11, 3, 2, 8)
    first, second = nn.Linear(16, 24), nn.Linear(24, 16)
    low = (nn.Linear(16, 24).bfloat16(), nn.Linear(24, 16).bfloat16())
    for one, other in zip((first, second), low, strict=True):
        other.load_state_dict(one.state_dict())
    dropout, plain = Dropout(0.0).train(training), Dropout(0.0).eval()
    with torch.no_grad():
        near = (
            feed_forward(x.bfloat16(), *low, dropout).float(),
            attend(qkv.bfloat16(), None, dropout).float(),
        )
        exact = feed_forward(x, first, second, plain), attend(qkv, None, plain)
    for rounded, reference in zip(near, exact, strict=True):
        assert torch.allclose(rounded, reference, atol=0.03)
        assert not torch.equal(rounded, reference)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
# Of ten heads' scores: together, in parts, one by one.
@pytest.mark.parametrize("at_once", [1, 3, 10])
def test_attention_and_its_gradients_are_the_textbooks(
    p: float, masked: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speaker.model.cpu_kernels.SCORES_AT_ONCE", at_once * 9 * 9)
    torch.manual_seed(0)
    qkv = torch.randn(2, 9, 3, 5, 4).requires_grad_()
    gradient = torch.randn(2, 9, 20)
    valid = torch.arange(9) < torch.tensor([9, 5])[:, None]
    bias = torch.where(valid, 0.0, -math.inf)[:, None, None, :] if masked else None
    context = attend(qkv, bias, seeded(p))

    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    weights = (query @ key.mT / 2 + (0 if bias is None else bias)).softmax(-1)
    dropout = seeded(p)
    rows = torch.arange(10).split(at_once)
    drawn = (
        [dropout.draw_mask(torch.Size((len(part), 9, 9)), torch.float32) for part in rows]
        if p
        else []
    )
    mask = (torch.cat(drawn) != 0).view(2, 5, 9, 9) if p else 1
    plain = ((weights * mask * dropout.scale) @ value).transpose(1, 2).flatten(2)
    assert torch.allclose(context, plain, atol=1e-6)
    (got,), (wanted,) = (torch.autograd.grad(y, qkv, gradient) for y in (context, plain))
    assert torch.allclose(got, wanted, atol=1e-5)
    if p == 0:
        assert torch.allclose(context, attend(qkv, bias, Dropout(0.0).eval()), atol=1e-6)
