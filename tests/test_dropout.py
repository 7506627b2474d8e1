import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speaker.dropout import Dropout

SHAPE = torch.Size((400, 257))


def seeded(p: float, seed: int = 0) -> Dropout:
    dropout = Dropout(p)
    dropout.reseed(seed)
    return dropout


def numbers(dropout: Dropout, dtype: torch.dtype) -> Tensor:
    """Return the dropout's next mask as numbers: 1 where kept, else 0."""
    return (dropout.draw_kept(SHAPE, dtype) != 0).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("p", "dropped"), [(0.1, 26 / 256), (0.5, 0.5), (1e-9, 1 / 256), (0.9999, 255 / 256)])
def test_drops_its_share_and_keeps_the_mean(p: float, dropped: float, dtype: torch.dtype) -> None:
    result = seeded(p)(torch.ones(SHAPE, dtype=dtype)).double()
    count = SHAPE.numel()
    assert result.unique().tolist() == pytest.approx([0, 1 / (1 - dropped)], rel=0.004)
    assert float((result == 0).double().mean()) == pytest.approx(dropped, abs=5 * math.sqrt(dropped / count))
    assert float(result.mean()) == pytest.approx(1, abs=5 * math.sqrt(dropped / (1 - dropped) / count) + 0.004)


def test_masks_do_not_repeat_within_or_between_calls() -> None:
    dropout = seeded(0.5)
    one, other = (numbers(dropout, torch.float32).flatten() - 0.5 for _ in range(2))
    assert abs(float((one * other).mean())) < 5 * 0.25 / math.sqrt(len(one))
    for lag in (1, 2, 4, 7, 8, 16, 64, 257):
        assert abs(float((one[lag:] * one[:-lag]).mean())) < 5 * 0.25 / math.sqrt(len(one)), lag
    assert torch.equal(numbers(seeded(0.5, 3), torch.float32), numbers(seeded(0.5, 3), torch.float32))
    assert not torch.equal(numbers(seeded(0.5, 3), torch.float32), numbers(seeded(0.5, 4), torch.float32))


def test_has_the_statistics_of_pytorchs() -> None:
    x = torch.linspace(-3, 3, 7).repeat(40_000, 1)
    ours, theirs = seeded(0.25)(x), F.dropout(x, 0.25, True, False)
    assert torch.allclose(ours.mean(0), theirs.mean(0), atol=0.05)
    assert torch.allclose(ours.std(0), theirs.std(0), atol=0.05)


def test_does_nothing_in_evaluation_or_at_zero() -> None:
    x = torch.randn(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_pass_where_numbers_did(dtype: torch.dtype) -> None:
    x = torch.randn(SHAPE).to(dtype).requires_grad_()
    dropout = seeded(0.3)
    result = dropout(x.mT).mT  # one that is not contiguous
    result.backward(torch.ones_like(result))
    assert x.grad is not None
    assert torch.equal(x.grad != 0, result != 0)
    assert torch.allclose(result, x.grad * x, rtol=0.01)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_and_its_gradients_are_the_textbooks(p: float, masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value, gradient = (torch.randn(2, 3, 9, 4).requires_grad_(i < 3) for i in range(4))
    mask = torch.arange(9) < torch.tensor([9, 5])[:, None]
    bias = torch.where(mask, 0.0, -math.inf)[:, None, None, :] if masked else None
    mixed = seeded(p).attend(query, key, value, bias)
    mixed.backward(gradient)
    got = [tensor.grad.clone() for tensor in (query, key, value) if tensor.grad is not None]

    shares = (query @ key.mT / 2 + (0 if bias is None else bias)).softmax(-1)
    dropout = seeded(p)
    kept = (dropout.draw_kept(torch.Size((6, 9, 9)), torch.float32) != 0).view(2, 3, 9, 9) if p else 1
    plain = (shares * kept * dropout.scale) @ value
    wanted = torch.autograd.grad(plain, (query, key, value), gradient)
    assert torch.allclose(mixed, plain, atol=1e-6)
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    if p == 0:
        theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        assert torch.allclose(mixed, theirs, atol=1e-6)
