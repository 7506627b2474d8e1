import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speaker.model.dropout import Dropout

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
    result = seeded(p).add(torch.zeros(SHAPE, dtype=dtype), torch.ones(SHAPE, dtype=dtype)).double()
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
    ours, theirs = seeded(0.25).add(torch.zeros_like(x), x), F.dropout(x, 0.25, True, False)
    assert torch.allclose(ours.mean(0), theirs.mean(0), atol=0.05)
    assert torch.allclose(ours.std(0), theirs.std(0), atol=0.05)


def test_does_nothing_in_evaluation_or_at_zero() -> None:
    x, residual = torch.randn(2, 3, 5)
    assert torch.equal(Dropout(0.5).eval().add(residual, x), residual + x)
    assert torch.equal(Dropout(0.0).add(residual, x), residual + x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_pass_where_numbers_did(dtype: torch.dtype) -> None:
    x = torch.randn(SHAPE).to(dtype).requires_grad_()
    residual = torch.zeros(SHAPE, dtype=dtype, requires_grad=True)
    result = seeded(0.3).add(residual, x.mT.contiguous().mT)  # one that is not contiguous
    result.backward(torch.ones_like(result))
    assert x.grad is not None
    assert torch.equal(x.grad != 0, result != 0)
    assert torch.allclose(result, x.grad * x, rtol=0.01)
    assert residual.grad is not None
    assert bool((residual.grad == 1).all())


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_feed_forward_block_and_its_gradients_are_the_textbooks(p: float) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(3, 11, 10).requires_grad_(), torch.randn(3, 11, 10)
    first, second = nn.Linear(10, 14), nn.Linear(14, 10)
    ours = seeded(p).feed_forward(x, first, second)
    dropout = seeded(p)
    kept = (dropout.draw_kept(torch.Size((33, 14)), torch.float32) != 0).view(3, 11, 14) if p else 1
    plain = second(F.relu(first(x)) * kept * dropout.scale)
    assert torch.allclose(ours, plain, atol=1e-5)
    of = (x, *first.parameters(), *second.parameters())
    for got, wanted in zip(*(torch.autograd.grad(y, of, gradient) for y in (ours, plain)), strict=True):
        assert torch.allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_in_bf16_blocks_are_as_near_as_bf16_is(training: bool) -> None:
    torch.manual_seed(0)
    x, heads = torch.randn(3, 11, 16), torch.randn(3, 11, 3, 2, 8)
    first, second = nn.Linear(16, 24), nn.Linear(24, 16)
    low = (nn.Linear(16, 24).bfloat16(), nn.Linear(24, 16).bfloat16())
    for one, other in zip((first, second), low, strict=True):
        other.load_state_dict(one.state_dict())
    dropout, plain = Dropout(0.0).train(training), Dropout(0.0).eval()
    with torch.no_grad():
        near = dropout.feed_forward(x.bfloat16(), *low).float(), dropout.attend(heads.bfloat16(), None).float()
        exact = plain.feed_forward(x, first, second), plain.attend(heads, None)
    for one, other in zip(near, exact, strict=True):
        assert torch.allclose(one, other, atol=0.03)
        assert not torch.equal(one, other)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("at_once", [1, 3, 10])  # of ten heads' scores: together, in parts, one by one
def test_attention_and_its_gradients_are_the_textbooks(
    p: float, masked: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speaker.model.cpu_kernels.SLICE", at_once * 9 * 9)
    torch.manual_seed(0)
    heads = torch.randn(2, 9, 3, 5, 4).requires_grad_()
    gradient = torch.randn(2, 9, 20)
    valid = torch.arange(9) < torch.tensor([9, 5])[:, None]
    bias = torch.where(valid, 0.0, -math.inf)[:, None, None, :] if masked else None
    mixed = seeded(p).attend(heads, bias)

    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
    shares = (query @ key.mT / 2 + (0 if bias is None else bias)).softmax(-1)
    dropout = seeded(p)
    rows = torch.arange(10).split(at_once)
    drawn = [dropout.draw_kept(torch.Size((len(part), 9, 9)), torch.float32) for part in rows] if p else []
    kept = (torch.cat(drawn) != 0).view(2, 5, 9, 9) if p else 1
    plain = ((shares * kept * dropout.scale) @ value).transpose(1, 2).flatten(2)
    assert torch.allclose(mixed, plain, atol=1e-6)
    (got,), (wanted,) = (torch.autograd.grad(y, heads, gradient) for y in (mixed, plain))
    assert torch.allclose(got, wanted, atol=1e-5)
    if p == 0:
        assert torch.allclose(mixed, Dropout(0.0).eval().attend(heads, bias), atol=1e-6)
