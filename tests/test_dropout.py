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


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_relu_and_residual_are_the_textbooks(p: float) -> None:
    torch.manual_seed(0)
    x, residual, gradient = torch.randn(SHAPE).requires_grad_(), torch.randn(SHAPE).requires_grad_(), torch.randn(SHAPE)
    for ours, plain in (
        (lambda dropout: dropout.relu(x) + 0 * residual, lambda dropout: dropout(F.relu(x)) + 0 * residual),
        (lambda dropout: dropout.add(residual, x), lambda dropout: residual + dropout(x)),
    ):
        one, other = ours(seeded(p)), plain(seeded(p))
        assert torch.allclose(one, other, atol=1e-6)
        for got, wanted in zip(*(torch.autograd.grad(y, (x, residual), gradient) for y in (one, other)), strict=True):
            assert torch.allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_and_its_gradients_are_the_textbooks(p: float, masked: bool) -> None:
    torch.manual_seed(0)
    heads = torch.randn(2, 9, 3, 5, 4).requires_grad_()
    gradient = torch.randn(2, 9, 20)
    valid = torch.arange(9) < torch.tensor([9, 5])[:, None]
    bias = torch.where(valid, 0.0, -math.inf)[:, None, None, :] if masked else None
    mixed = seeded(p).attend(heads, bias)

    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
    shares = (query @ key.mT / 2 + (0 if bias is None else bias)).softmax(-1)
    dropout = seeded(p)
    kept = (dropout.draw_kept(torch.Size((10, 9, 9)), torch.float32) != 0).view(2, 5, 9, 9) if p else 1
    plain = ((shares * kept * dropout.scale) @ value).transpose(1, 2).flatten(2)
    assert torch.allclose(mixed, plain, atol=1e-6)
    (got,), (wanted,) = (torch.autograd.grad(y, heads, gradient) for y in (mixed, plain))
    assert torch.allclose(got, wanted, atol=1e-5)
    if p == 0:
        assert torch.allclose(mixed, Dropout(0.0).eval().attend(heads, bias), atol=1e-6)
