"""The imitation refuses what a GPU refuses: tests that rest on it could not fail otherwise."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speaker.model.attention import attend_fused
from tests.imitation import AsOnGpu, Graph, Memory, Watch

X = torch.arange(12.0).view(3, 4)
ROWS = torch.tensor([2, 0])
NUMBER = torch.tensor(1)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: X[NUMBER], "makes the host wait"),  # as the step did that could not be captured
        (lambda: X.sum().item(), "makes the host wait"),
        (lambda: bool((X > 3).all()), "makes the host wait"),
        (lambda: torch.where(X > 3, 0.0, -math.inf), "makes the host wait"),
        (lambda: torch.tensor([1.0, 2.0]) + 1, "makes the host wait"),
        (lambda: X[X > 3], "makes the host wait|a shape made of values"),
        (lambda: (X > 3).nonzero(), "makes the host wait"),
        (lambda: X.index_select(0, ROWS + 1), "reads outside of 3"),
        (lambda: X[ROWS - 1], "reads outside of 3"),
        (lambda: F.cross_entropy(X, torch.arange(2, 5)), "reads outside of 4"),
        (lambda: X.to("meta"), "copies to another device"),
    ],
)
def test_what_no_step_may_do_is_refused(call: Callable[[], object], why: str) -> None:
    with pytest.raises(AssertionError, match=why), Watch():
        call()


def test_what_a_step_does_is_counted() -> None:
    y = torch.zeros(4, requires_grad=True)
    with AsOnGpu(), Watch() as watch:
        mels = X.index_select(0, ROWS).view(2, 2, 2).transpose(1, 2)  # one
        F.dropout(
            mels.flatten() @ torch.ones(8, 4) + y, 0.5, True
        ).sum()  # a copy, ones, a product, a sum, dropout, sum
    assert watch.count == 7, watch.kernels
    lists = [torch.zeros(2, 3), torch.zeros(3)], [torch.ones(2, 3), torch.ones(3)]
    with Watch() as watch:
        torch._foreach_copy_(*lists)
        assert watch.count == 1
        torch._foreach_copy_(lists[0], [torch.ones(3, 2).mT, torch.ones(3)])
    assert watch.kernels["_foreach_copy_"] == 3, "lists of other strides are copied one by one"


@pytest.mark.parametrize("width", [5, 10, 20, 40])
@pytest.mark.parametrize("masked", [False, True])
def test_padded_heads_attend_as_true_ones(width: int, masked: bool) -> None:
    torch.manual_seed(0)
    heads = torch.randn(2, 9, 3, 4, width, requires_grad=True)
    bias = torch.zeros(2, 1, 1, 9).masked_fill_(torch.arange(9) > 6, -math.inf) if masked else None
    with AsOnGpu():
        padded = attend_fused(heads, bias, 0.0)
    plain = attend_fused(heads, bias, 0.0, any_width=True)
    assert torch.allclose(padded, plain, atol=1e-6)
    one, other = (torch.autograd.grad(y, heads, torch.ones_like(y))[0] for y in (padded, plain))
    assert torch.allclose(one, other, atol=1e-6)
    if width % 4:
        with (
            pytest.raises(AssertionError, match=f"no fused attention for heads of width {width}"),
            AsOnGpu(),
        ):
            attend_fused(heads, bias, 0.0, any_width=True)


def test_memory_is_what_lives_at_the_same_time() -> None:
    with Memory() as memory:
        one = torch.zeros(1000)
        other = one.view(10, 100) + 1
        del one
        kept = other[1:] * 2
    assert memory.peak == 4 * 2000
    assert memory.now == 4 * (1000 + 900)
    assert len(kept) == 9


def test_a_replay_reads_memory_and_knows_nothing_of_pythons_values() -> None:
    graph, source, target = Graph(), torch.ones(3), torch.zeros(3)
    factor = 2.0

    def work() -> Tensor:
        return target.add_((source * factor)[1:].sum())

    graph.capture_begin()
    work()
    graph.capture_end()
    target.zero_()
    source.fill_(5.0)
    factor = 100.0
    graph.replay()
    assert target.tolist() == [20.0] * 3
