"""What only a card can show; `python -m benchmarks.gpu` runs these.

TEST_DEVICE=cpu rehearses what a CPU can.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.proposals.space import HOMEWORK
from experiments.tracking.store import TrackingStore
from speaker.common.cuda import use
from speaker.common.devices import Compute, find_compute
from speaker.config import TrialConfig
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.model.classifier import SpeakerClassifier
from speaker.training.evaluation import Evaluator
from speaker.training.gpu_learner import GpuLearner
from speaker.training.metrics import OBJECTIVE
from speaker.training.train import train
from tests.helpers import LOSS, TINY, assert_whole, run, write_corpus

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda:0"))
IS_CARD = DEVICE.type == "cuda"
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)
FEW = HOMEWORK.points(TINY.replace(batch_size=4, segment_len=24))[::24]  # of all shapes

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(IS_CARD and not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def compute() -> Iterator[Compute]:
    found = find_compute(str(DEVICE), "auto")
    if IS_CARD:
        use(found.device)
    yield found
    if IS_CARD:
        torch.cuda.empty_cache()


def has(precision: torch.dtype) -> bool:
    return (
        not IS_CARD
        or precision != torch.bfloat16
        or torch.cuda.get_device_capability(DEVICE) >= (8, 0)
    )


def learner_of(config: TrialConfig, pack: Pack, compute: Compute, graph: bool) -> GpuLearner:
    there = pack.to(compute.device, compute.precision)
    rows, _ = Protocol().split(pack)
    return GpuLearner(config, there, rows, replace(compute, graph=graph and IS_CARD))


def weights_after(learner: GpuLearner, steps: range) -> Tensor:
    for number in steps:
        learner.step(number)
    return learner.model_state()["project.weight"]


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_every_shape_is_captured_and_replays_its_step(
    pack: Pack, compute: Compute, precision: torch.dtype
) -> None:
    if not has(precision):
        pytest.skip(f"the card has no {precision}")
    for point in FEW:
        point = point.replace(dropout=0.0, warmup_steps=0)
        each = replace(compute, precision=precision)
        with (
            learner_of(point, pack, each, graph=True) as captured,
            learner_of(point, pack, each, graph=False) as plain,
        ):
            assert captured.fallback == "", point.label()
            assert bool(captured._graphs) == IS_CARD
            one, other = weights_after(captured, range(6)), weights_after(plain, range(6))
            assert torch.allclose(one, other, atol=1e-3), point.label()


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_a_training_is_resumed_exactly(
    pack: Pack, compute: Compute, precision: torch.dtype
) -> None:
    if not has(precision):
        pytest.skip(f"the card has no {precision}")
    each = replace(compute, precision=precision)
    config = TINY.replace(steps=30)
    whole = weights_after(learner_of(config, pack, each, graph=True), range(20))
    first = learner_of(config, pack, each, graph=True)
    weights_after(first, range(9))
    state = first.state()  # before another learner seeds the generator that all share
    second = learner_of(config, pack, each, graph=True)
    second.load(state, 9)
    assert torch.equal(weights_after(second, range(9, 20)), whole), (
        "dropout or order differ, or a sum has no order"
    )


def test_float16_learns_what_float32_learns(pack: Pack, compute: Compute) -> None:
    config = TINY.replace(steps=60, lr=5e-3, activation="relu", valid_every=20)
    for precision in (torch.float32, torch.float16) if IS_CARD else (torch.float32,):
        each = replace(compute, precision=precision)
        result = train(config, pack.to(DEVICE, precision), Protocol(), lambda *_: False, each)
        assert result.best[OBJECTIVE] == 1.0
        assert result.fallback == ""


def test_fifty_trainings_leave_the_memory_as_it_was(pack: Pack, compute: Compute) -> None:
    there = pack.to(DEVICE, compute.precision)
    held = []
    for point in HOMEWORK.points(TINY.replace(steps=2, warmup_steps=0, valid_every=2))[::12]:
        train(point, there, Protocol(), lambda *_: False, compute)
        if IS_CARD:
            torch.cuda.empty_cache()
            held.append(torch.cuda.memory_reserved(DEVICE))
    assert not held or max(held[10:]) <= max(held[:10]) + (64 << 20), held


def test_attention_over_a_long_utterance_stores_no_scores(compute: Compute) -> None:
    """7,193 frames at 16 heads: the scores alone would be 1.7 GB in two bytes each."""
    if not IS_CARD:
        pytest.skip("a CPU's memory is not measured")
    for d_model, nhead in ((80, 16), (80, 8), (512, 1), (512, 16)):
        config = TINY.replace(d_model=d_model, nhead=nhead)
        model = SpeakerClassifier(config, 40, 600).to(DEVICE, compute.precision).eval()
        for lengths in (None, torch.tensor([7_193], device=DEVICE)):
            torch.cuda.reset_peak_memory_stats(DEVICE)
            with torch.inference_mode():
                model(torch.zeros(1, 7_193, 40, device=DEVICE), lengths)
            assert torch.cuda.max_memory_allocated(DEVICE) < 400 << 20, config.label()


def test_an_evaluation_here_is_one_on_the_cpu(pack: Pack, compute: Compute) -> None:
    torch.manual_seed(0)
    model = SpeakerClassifier(TINY, 40, 4)
    expected = Evaluator(pack, Protocol())(model, LOSS)
    measured = Evaluator(pack.to(DEVICE, torch.float32), Protocol())(model.to(DEVICE), LOSS)
    assert measured["loss/whole"] == pytest.approx(expected["loss/whole"], rel=1e-3)
    assert compute.device == DEVICE


def test_a_search_looks_ahead_and_its_jobs_share_the_pack(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", speakers=3, per_speaker=14, test=5, frames=(4, 40))
    for jobs, trials in ((1, 3), (2, 8)):
        done = run(tmp_path, "search.py", "--data", "corpus", "--steps", 20, "--device", DEVICE, "--jobs", jobs,
                   "--trials", trials)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr.lower(), done.stderr
        assert re.search(r" A step takes .* GiB of memory", " ".join(done.stdout.split())), (
            done.stdout
        )
    assert_whole(tmp_path, 8)
    runs = TrackingStore(f"sqlite:///{tmp_path}/mlruns/mlflow.db").runs("tags.kind = 'trial'")
    assert all("device.fallbacks" not in each.data.tags for each in runs)
    predicted = run(tmp_path, "speaker", "predict", "--data", "corpus", "--device", DEVICE, "--ensemble", 2,
                    "--study", "homework-corpus", "--out", "voted.csv")  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
