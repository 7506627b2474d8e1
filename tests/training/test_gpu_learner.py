"""What a GPU would do, proved on a CPU: by imitation (tests/imitation.py), by tracing,
and by PyTorch's own checks.
"""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from experiments.proposals.space import HOMEWORK
from speaker.common import cuda
from speaker.common.devices import Compute, ThreadPool
from speaker.config import HOMEWORK_BASELINE, HOMEWORK_EDITED, TrialConfig
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.training.cpu_learner import CpuLearner
from speaker.training.evaluation import Evaluator
from speaker.training.gpu_learner import GpuLearner
from speaker.training.loss_scale import FIRST_SCALE, GROWTH_STEPS
from speaker.training.metrics import OBJECTIVE
from speaker.training.train import train
from tests.helpers import LAYERS, TINY
from tests.imitation import AsOnGpu, Graph, Stream, Watch

FAST = TINY.replace(batch_size=2, segment_len=24, dim_feedforward=256)
PRECISIONS = (torch.bfloat16, torch.float16, torch.float32)
NO_DROPOUT = TINY.replace(dropout=0.0, warmup_steps=0, num_layers=2, batch_size=7)
CENTER = HOMEWORK_BASELINE.replace(activation="relu")
# A captured step's, of a batch without padding in bfloat16, at the points of benchmarks/train.py.
KERNELS = {
    HOMEWORK_BASELINE: 74,
    CENTER.replace(d_model=128, nhead=4, num_layers=2): 113,
    CENTER.replace(d_model=256, nhead=8, num_layers=4): 191,
    HOMEWORK_EDITED: 270,
}


def on_gpu(pack: Pack, precision: torch.dtype) -> Pack:
    """Return a pack with its frames as they lie on a GPU."""
    return (
        replace(pack, frames=pack.frames.to(torch.bfloat16))
        if precision == torch.bfloat16
        else pack
    )


def learner_of(
    config: TrialConfig, pack: Pack, precision: torch.dtype, graph: bool = False
) -> GpuLearner:
    rows, _ = Protocol().split(pack)
    return GpuLearner(
        config, on_gpu(pack, precision), rows, Compute(precision=precision, graph=graph)
    )


def shapes() -> list[TrialConfig]:
    """Return the points of the space in their 120 shapes, each with one of the activations in turn."""
    points = HOMEWORK.points(FAST)
    by_shape: dict[tuple[int, int, int], list[TrialConfig]] = {}
    for point in points:
        by_shape.setdefault((point.d_model, point.nhead, point.num_layers), []).append(point)
    assert len(points) == 600
    assert len(by_shape) == 120
    return [alike[number % len(alike)] for number, alike in enumerate(by_shape.values())]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("d_model", [80, 128, 256, 512])
def test_steps_and_evaluations_of_all_shapes_are_a_gpus(
    pack: Pack, d_model: int, precision: torch.dtype
) -> None:
    """No host read, no copy of numbers, no shape of values, no index out of range,
    and attention fused.
    """
    there = on_gpu(pack, precision)
    evaluate = Evaluator(there, Protocol(crop_len=30))
    assert {batch.is_padded for batch in evaluate._crops} == {True, False}
    for point in shapes():
        if point.d_model != d_model or point.num_layers not in LAYERS:
            continue
        learner = learner_of(point, pack, precision)
        assert learner._batches.kinds == {True, False}
        for is_padded in (False, True):
            learner._number.zero_()
            with AsOnGpu() as gpu, Watch() as watch:
                learner._work(is_padded)
            assert sum(gpu.attentions.values()) == point.num_layers
            assert watch.count > 60
        learner.model.eval()
        for batch in (evaluate._crops[0], evaluate._crops[-1]):
            with AsOnGpu() as gpu, Watch():
                evaluate._score(learner.model, learner.loss, batch)
            assert sum(gpu.attentions.values()) == point.num_layers


@pytest.mark.parametrize("config", KERNELS, ids=TrialConfig.label)
def test_a_step_starts_so_many_kernels(pack: Pack, config: TrialConfig) -> None:
    """A change that adds some is seen here; one that saves some is to be written down here."""
    learner = learner_of(config.replace(batch_size=2, segment_len=24), pack, torch.bfloat16)
    with AsOnGpu(), Watch() as watch:
        learner._work(False)
    assert watch.count == KERNELS[config], watch.kernels


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Graph]]:
    """An imitated card, on which everything trains, and what its graphs are;
    they can be told to fail.
    """
    cuda._side_stream.cache_clear()
    Stream.current = Stream()
    for name, value in {
        "Stream": Stream,
        "stream": lambda stream: stream,
        "current_stream": lambda _device: Stream.current,
        "synchronize": lambda _device: None,
        "graph_pool_handle": lambda: (0, 1),
        "empty_cache": lambda: None,
        "CUDAGraph": Graph,
        "is_current_stream_capturing": lambda: Graph.captures,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Graph, "failure", None)
    monkeypatch.setattr(Graph, "ended", [])
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(
            torch._C,
            name,
            lambda *given, name=name: Graph.ended.append((name, *given)),
            raising=False,
        )
    monkeypatch.setattr("speaker.training.train.CpuLearner", lambda *given: GpuLearner(*given[:4]))
    with AsOnGpu():
        yield Graph
    cuda._side_stream.cache_clear()


def weights_after(learner: GpuLearner, steps: range) -> Tensor:
    for number in steps:
        learner.step(number)
    return learner.weights.detach().clone()


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("batch_size", [7, 30, 54])  # 54: an epoch has one step
def test_a_replayed_step_is_the_step(
    pack: Pack, precision: torch.dtype, dropout: float, batch_size: int
) -> None:
    config = NO_DROPOUT.replace(dropout=dropout, batch_size=batch_size)
    plain = weights_after(learner_of(config, pack, precision), range(12))
    learner = learner_of(config, pack, precision, graph=True)
    assert learner.fallback == ""
    assert set(learner._graphs) == learner._batches.kinds
    assert torch.equal(weights_after(learner, range(12)), plain), (
        "a graph sees nothing that Python changes"
    )


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_training_may_be_shorter_than_the_warm_up_of_its_graph(pack: Pack, steps: int) -> None:
    config = NO_DROPOUT.replace(steps=steps, batch_size=54, valid_every=1)
    result = train(config, pack, Protocol(), lambda *_: False, Compute(graph=True))
    learner = learner_of(config, pack, torch.float32, graph=True)
    plain = learner_of(config, pack, torch.float32)
    assert (result.outcome, result.steps) == ("complete", steps)
    assert torch.equal(weights_after(learner, range(steps)), weights_after(plain, range(steps)))


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("seed", range(20))
def test_a_warm_up_stays_inside_the_frames(pack: Pack, seed: int) -> None:
    """The last utterance of the pack is short, and each kind's warm-up runs on the first batch,
    whatever is in it.
    """
    last = int(pack.lengths[-1])
    learner = learner_of(NO_DROPOUT.replace(seed=seed, segment_len=last + 10), pack, torch.float32)
    for is_padded in (False, True):
        with Watch():
            cuda.capture(
                partial(learner._work, is_padded),
                learner._number.zero_,
                learner._device,
                None,
            )


def test_a_capture_that_fails_says_why_and_leaves_plain_steps(
    pack: Pack, card: type[Graph]
) -> None:
    before = Stream.current
    card.failure = RuntimeError(
        "CUDA error: operation failed due to a previous error during capture\nCompile with ..."
    )
    learner = learner_of(NO_DROPOUT, pack, torch.float32, graph=True)
    assert learner.fallback == "CUDA error: operation failed due to a previous error during capture"
    assert Stream.current is before
    assert learner._graphs == {}
    assert not learner._adamw.param_groups[0]["capturable"], (
        "AdamW warns of it outside of a capture"
    )
    plain = weights_after(learner_of(NO_DROPOUT, pack, torch.float32), range(12))
    assert torch.equal(weights_after(learner, range(12)), plain)
    result = train(NO_DROPOUT, pack, Protocol(), lambda *_: False, Compute(graph=True))
    assert (result.outcome, result.fallback) == ("complete", learner.fallback)


def test_what_a_capture_meets_is_not_hidden_by_its_end(card: type[Graph]) -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        if calls > cuda.WARM_UP:
            raise RuntimeError("the true cause")

    before = Stream.current
    card.failure = RuntimeError("capture failed")
    with pytest.raises(RuntimeError, match="the true cause"):
        cuda.capture(work, lambda: None, torch.device("cuda", 0), None)
    assert Stream.current is before
    assert card.ended == [("_cuda_endAllocateToPool", 0, (0, 1)), ("_cuda_releasePool", 0, (0, 1))]


@pytest.mark.usefixtures("card")
def test_all_captures_use_one_stream(pack: Pack) -> None:
    for _ in range(3):
        learner_of(NO_DROPOUT, pack, torch.float32, graph=True)
    assert cuda._side_stream.cache_info().misses == 1


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("graph", [False, True])
def test_a_state_goes_on_exactly(pack: Pack, precision: torch.dtype, graph: bool) -> None:
    config = TINY.replace(steps=30)
    whole = weights_after(learner_of(config, pack, precision, graph), range(20))
    first = learner_of(config, pack, precision, graph)
    weights_after(first, range(9))
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    weights_after(first, range(9, 11))  # what it does later does not change the state
    torch.rand(7)
    second = learner_of(config, pack, precision, graph)
    second.load(state, 9)
    assert torch.equal(weights_after(second, range(9, 20)), whole)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32], ids=str)
def test_a_cpus_state_goes_on_here_and_back(pack: Pack, precision: torch.dtype) -> None:
    rows, _ = Protocol().split(pack)
    with ThreadPool(1) as pool:
        there = CpuLearner(NO_DROPOUT, pack, rows, Compute(precision=precision), pool)
        for number in range(5):
            there.step(number)
        here = learner_of(NO_DROPOUT, pack, precision)
        here.load(there.state(), 5)
        assert torch.equal(here.weights, there.weights)
        for number in range(5, 9):
            there.step(number)
            here.step(number)
        assert torch.allclose(
            here.weights, there.weights, atol=1e-3 if precision == torch.float32 else 2e-2
        )
        there.load(here.state(), 9)
        assert torch.equal(here.weights, there.weights)
        there.step(9)


def overflow(learner: GpuLearner) -> None:
    """Make the loss so large that its gradient is beyond what float16 can say."""
    assert learner._loss_scale
    learner._loss_scale.scale.fill_(2.0**40)


@pytest.mark.usefixtures("card")
def test_the_loss_scale_halves_at_an_overflow_and_that_step_is_skipped(pack: Pack) -> None:
    learner = learner_of(NO_DROPOUT, pack, torch.float16, graph=True)
    weights_after(learner, range(3))
    assert learner.diagnostics(3) == {"train/loss_scale": FIRST_SCALE, "train/skipped_steps": 0}
    overflow(learner)
    before = {name: tensor.clone() for name, tensor in learner.state().items()}
    learner.step(3)
    after = learner.state()
    assert learner.diagnostics(4) == {"train/loss_scale": 2.0**39, "train/skipped_steps": 1}
    for name in ("weights", "exp_avg", "exp_avg_sq", "count"):
        assert torch.equal(after[name], before[name]), name
    assert learner.is_finite()
    assert after["totals"][0] > before["totals"][0], "its loss counts all the same"


def test_the_loss_scale_grows_after_many_steps(pack: Pack) -> None:
    learner = learner_of(NO_DROPOUT, pack, torch.float16)
    assert learner._loss_scale
    learner._loss_scale._streak.fill_(GROWTH_STEPS - 2)
    scales = []
    for number in range(3):
        learner.step(number)
        scales.append(learner.diagnostics(number + 1)["train/loss_scale"])
    assert scales == [FIRST_SCALE, 2 * FIRST_SCALE, 2 * FIRST_SCALE]


def test_a_loss_scale_is_resumed(pack: Pack) -> None:
    whole = learner_of(TINY, pack, torch.float16)
    overflow(whole)
    weights_after(whole, range(3))
    second = learner_of(TINY, pack, torch.float16)
    second.load(whole.state(), 3)
    assert (
        second.diagnostics(3)
        == whole.diagnostics(3)
        == {"train/loss_scale": 2.0**37, "train/skipped_steps": 3}
    )
    assert torch.equal(weights_after(second, range(3, 30)), weights_after(whole, range(3, 30)))
    assert second.diagnostics(30)["train/skipped_steps"] > 3
    assert second.diagnostics(30) == whole.diagnostics(30)


@pytest.mark.usefixtures("card")
def test_float16_learns_what_float32_learns(pack: Pack) -> None:
    config = TINY.replace(steps=60, lr=5e-3, activation="relu", valid_every=20)
    rows = []
    scores = []
    for precision in (torch.float32, torch.float16):
        result = train(
            config,
            pack,
            Protocol(),
            lambda _, row: bool(rows.append(row)),
            Compute(precision=precision),
        )
        scores.append(result.best[OBJECTIVE])
    assert scores == [1.0, 1.0]
    assert rows[5]["loss/train"] == pytest.approx(rows[2]["loss/train"], abs=0.05)
    assert rows[5]["train/skipped_steps"] < 10
    assert "train/skipped_steps" not in rows[2]


@pytest.mark.slow
@pytest.mark.usefixtures("card")
def test_a_training_leaves_nothing_behind(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of all shapes: when the result is there, no tensor of its learner lives."""
    made: list[weakref.ref[object]] = []
    original = GpuLearner.__init__

    def watched(self: GpuLearner, *given: object) -> None:
        original(self, *given)  # type: ignore[arg-type]
        kept = (
            self.weights,
            self._gradient,
            self._working,
            *self._parameters,
            *self._graphs.values(),
        )
        made.extend(map(weakref.ref, kept))

    monkeypatch.setattr(GpuLearner, "__init__", watched)
    for point in HOMEWORK.points(FAST.replace(steps=1, warmup_steps=0, valid_every=1))[::47]:
        train(point, pack, Protocol(), lambda *_: False, Compute(graph=True))
        assert [ref for ref in made if ref() is not None] == [], point.label()
    assert len(made) > 12 * 10
