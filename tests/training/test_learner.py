import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from speaker.common.devices import Compute, ThreadPool
from speaker.config import HOMEWORK_BASELINE, TrialConfig
from speaker.data.batches import Batches
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.training.cpu_learner import CpuLearner
from speaker.training.gpu_learner import GpuLearner
from speaker.training.learner import Learner
from speaker.training.schedule import learning_rate
from tests.helpers import TINY

NO_DROPOUT = TINY.replace(dropout=0.0, warmup_steps=0, num_layers=2, batch_size=7)


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.0),
        (1, 0.001),
        (500, 0.5),
        (1_000, 1.0),
        (35_000, 0.5 * (1 + math.cos(math.pi * 34_000 / 69_000))),
        (70_000, 0.0),
    ],
)
def test_the_schedule_is_the_homeworks(step: int, share: float) -> None:
    assert learning_rate(HOMEWORK_BASELINE, step) == pytest.approx(1e-3 * share, abs=1e-18)


def test_the_schedule_without_warm_up_starts_at_its_peak() -> None:
    assert learning_rate(HOMEWORK_BASELINE.replace(warmup_steps=0), 0) == 1e-3


def batches(
    config: TrialConfig, pack: Pack, rows: Tensor, epoch: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """Yield (mels, lengths, labels) of an epoch's steps, as a learner gathers them."""
    source = Batches(config, pack, rows)
    drawn = source.draw_epoch(epoch)
    for step in range(source.steps_per_epoch):
        part = slice(step * config.batch_size, (step + 1) * config.batch_size)
        yield source.gather(drawn.rows[part], drawn.crop_offsets[part], drawn.is_padded[step])  # type: ignore[misc]


def test_batches_see_every_utterance_once_an_epoch(pack: Pack) -> None:
    rows, _ = Protocol().split(pack)
    by_content = {pack.frames[o].sum().item() for o in pack.offsets[rows]}
    assert len(by_content) == len(rows) == 54
    whole = TINY.replace(segment_len=1_000, batch_size=9)
    first = list(batches(whole, pack, rows))
    starts = [mels[i, 0].half().sum().item() for mels, _, _ in first for i in range(9)]
    assert set(starts) == by_content
    assert not torch.equal(first[0][2], next(batches(whole, pack, rows, epoch=1))[2])


def test_batches_drop_the_last_partial_one(pack: Pack) -> None:
    rows, _ = Protocol().split(pack)
    assert [len(labels) for _, _, labels in batches(TINY.replace(batch_size=50), pack, rows)] == [
        50
    ]


def test_lengths_come_only_with_batches_that_need_them(pack: Pack) -> None:
    rows, _ = Protocol().split(pack)
    seen = set()
    for mels, lengths, labels in batches(TINY.replace(segment_len=24, batch_size=4), pack, rows):
        assert mels.shape == (4, 24, 40)
        assert len(labels) == 4
        assert lengths is None or lengths.min() < 24
        seen.add(lengths is None)
    assert seen == {True, False}
    assert all(
        lengths is None for _, lengths, _ in batches(TINY.replace(segment_len=10), pack, rows)
    )


def learned(
    config: TrialConfig, pack: Pack, compute: Compute, steps: int, on_device: bool = False
) -> Learner:
    rows, _ = Protocol().split(pack)
    with ThreadPool(compute.shards) as pool:
        learner: Learner = (
            GpuLearner(config, pack, rows, compute)
            if on_device
            else CpuLearner(config, pack, rows, compute, pool)
        )
        for number in range(steps):
            learner.step(number)
    return learner


def test_shards_learn_what_one_learns(pack: Pack) -> None:
    one = learned(NO_DROPOUT, pack, Compute(), 20)
    totals = one.take_totals()
    for threads in (2, 3, 16):
        other = learned(NO_DROPOUT, pack, Compute(threads=threads), 20)
        assert torch.allclose(other.weights, one.weights, atol=1e-4, rtol=0)
        assert other.take_totals() == pytest.approx(totals, rel=1e-4)
    assert torch.equal(other.weights, learned(NO_DROPOUT, pack, Compute(threads=16), 20).weights)


def test_shards_drop_out_on_their_own(pack: Pack) -> None:
    config = TINY.replace(dropout=0.5)
    assert not torch.equal(
        learned(config, pack, Compute(), 3).weights,
        learned(config, pack, Compute(threads=2), 3).weights,
    )


def test_more_shards_than_utterances_in_a_batch(pack: Pack) -> None:
    learner = learned(NO_DROPOUT.replace(batch_size=1), pack, Compute(threads=4), 5)
    assert learner.weights.isfinite().all()


def test_what_a_gpu_does_gives_the_same_weights(pack: Pack) -> None:
    """Its operations, started one by one on the CPU: order, schedule and step count as tensors."""
    for config in (NO_DROPOUT, NO_DROPOUT.replace(segment_len=10, steps=30, warmup_steps=5)):
        one, other = (
            learned(config, pack, Compute(), 12, on_device) for on_device in (False, True)
        )
        assert torch.allclose(other.weights, one.weights, atol=1e-4, rtol=0)
        assert other.take_totals() == pytest.approx(one.take_totals(), rel=1e-4)


def test_bf16_learns_nearly_what_fp32_learns(pack: Pack) -> None:
    config = NO_DROPOUT.replace(lr=1e-4)
    one, other = (
        learned(config, pack, Compute(precision=dtype), 20)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert one.weights.dtype == other.weights.dtype == torch.float32
    assert other.model.project.weight.dtype == torch.bfloat16
    assert other.take_totals()[0] == pytest.approx(one.take_totals()[0], rel=0.01)
    assert not torch.equal(one.weights, other.weights)


@pytest.mark.parametrize("on_device", [False, True])
def test_a_state_goes_on_as_if_nothing_had_happened(pack: Pack, on_device: bool) -> None:
    # On a CPU only shards address their dropout by step.
    config = TINY if not on_device else NO_DROPOUT
    whole = learned(config, pack, Compute(), 12, on_device)
    first = learned(config, pack, Compute(), 5, on_device)
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    first.step(5)  # what it does later does not change the state
    second = learned(config, pack, Compute(), 0, on_device)
    second.load(state, 5)
    for number in range(5, 12):
        second.step(number)
    assert torch.equal(second.weights, whole.weights)
    assert second.take_totals() == whole.take_totals()


def test_weights_have_the_models_names_and_are_copies(pack: Pack) -> None:
    learner = learned(TINY, pack, Compute(), 1)
    named = learner.model_state()
    assert {name: value.shape for name, value in named.items()} == {
        name: value.shape for name, value in learner.model.state_dict().items()
    }
    before = {name: value.clone() for name, value in named.items()}
    learner.step(1)
    assert all(torch.equal(value, before[name]) for name, value in named.items())
    assert all(
        torch.equal(value, learner.model.state_dict()[name])
        for name, value in learner.model_state().items()
    )


def test_a_weight_that_is_no_number_is_noticed(pack: Pack) -> None:
    learner = learned(TINY, pack, Compute(), 1)
    assert learner.is_finite()
    with torch.no_grad():
        learner.weights[-1] = -math.nan
    assert not learner.is_finite()
