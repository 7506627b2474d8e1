import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speaker.model.dropout import Dropout

SHAPE = torch.Size((400, 257))


def seeded(p: float, seed: int = 0) -> Dropout:
    dropout = Dropout(p)
    dropout.reseed(seed)
    return dropout


def numbers(dropout: Dropout, dtype: torch.dtype) -> Tensor:
    """Return the dropout's next mask as numbers: 1 where mask, else 0."""
    return (dropout.draw_mask(SHAPE, dtype) != 0).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("p", "dropped"), [(0.1, 26 / 256), (0.5, 0.5), (1e-9, 1 / 256), (0.9999, 255 / 256)]
)
def test_drops_its_share_and_keeps_the_mean(p: float, dropped: float, dtype: torch.dtype) -> None:
    result = seeded(p).add(torch.zeros(SHAPE, dtype=dtype), torch.ones(SHAPE, dtype=dtype)).double()
    count = SHAPE.numel()
    assert result.unique().tolist() == pytest.approx([0, 1 / (1 - dropped)], rel=0.004)
    assert float((result == 0).double().mean()) == pytest.approx(
        dropped, abs=5 * math.sqrt(dropped / count)
    )
    assert float(result.mean()) == pytest.approx(
        1, abs=5 * math.sqrt(dropped / (1 - dropped) / count) + 0.004
    )


def test_masks_do_not_repeat_within_or_between_calls() -> None:
    dropout = seeded(0.5)
    one, other = (numbers(dropout, torch.float32).flatten() - 0.5 for _ in range(2))
    assert abs(float((one * other).mean())) < 5 * 0.25 / math.sqrt(len(one))
    for lag in (1, 2, 4, 7, 8, 16, 64, 257):
        assert abs(float((one[lag:] * one[:-lag]).mean())) < 5 * 0.25 / math.sqrt(len(one)), lag
    assert torch.equal(
        numbers(seeded(0.5, 3), torch.float32), numbers(seeded(0.5, 3), torch.float32)
    )
    assert not torch.equal(
        numbers(seeded(0.5, 3), torch.float32), numbers(seeded(0.5, 4), torch.float32)
    )


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
