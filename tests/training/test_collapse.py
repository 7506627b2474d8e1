"""Collapses that are planted are recognised in the first tenth of the budget, and trainings that
learn are left alone.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from speaker.common.devices import Compute, ThreadPool
from speaker.config import ACTIVATIONS, DEMO_BUDGET, TrialConfig
from speaker.data.corpus import Corpus
from speaker.data.pack import Pack, open_pack
from speaker.data.protocol import Protocol
from speaker.training import train as training
from speaker.training.collapse import MAX_LOSS, MIN_SPREAD, CollapseDetector
from speaker.training.cpu_learner import CpuLearner
from speaker.training.metrics import Metrics
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult, train

BUDGET = DEMO_BUDGET.replace(batch_size=8, segment_len=24)
# Of the space `homework`, shallow and deep, each activation once.
POINTS = [
    BUDGET.replace(d_model=width, nhead=heads, num_layers=layers, activation=activation)
    for (width, heads, layers), activation in zip(
        [(80, 2, 1), (128, 4, 3), (80, 16, 6), (256, 1, 2), (80, 8, 4)], ACTIVATIONS, strict=True
    )
]


def train_whole(config: TrialConfig, pack: Pack) -> TrialResult:
    return train(config, pack, Protocol(), lambda _step, _metrics: False)


def saturated(*arguments: object) -> CpuLearner:
    """A learner of a model whose head is so far out that no activation lets anything through."""
    learner = CpuLearner(*arguments)  # type: ignore[arg-type]
    with torch.no_grad():
        learner.model.hidden.bias.fill_(-1e4)
    return learner


@pytest.mark.parametrize("config", POINTS, ids=TrialConfig.label)
@pytest.mark.parametrize("rate", [1.0, 30.0])
def test_a_rate_far_too_high_is_recognised(config: TrialConfig, rate: float, pack: Pack) -> None:
    result = train_whole(config.replace(lr=rate), pack)
    assert result.outcome == Outcome.COLLAPSED, result
    assert result.steps <= config.steps // 10
    assert result.reason.endswith(f", at step {result.steps}")
    assert result.reason.startswith(("blown up: ", "constant: "))
    assert not result.best


@pytest.mark.parametrize("config", POINTS, ids=TrialConfig.label)
def test_a_constant_answer_is_recognised(
    config: TrialConfig, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "open_learner", saturated)
    result = train_whole(config, pack)
    assert result.outcome == Outcome.COLLAPSED
    assert result.steps <= config.steps // 10
    assert result.reason.startswith("constant: every utterance gets the same answer")


@pytest.mark.parametrize("config", POINTS[:2], ids=TrialConfig.label)
def test_frames_that_are_no_numbers_are_recognised(config: TrialConfig, pack: Pack) -> None:
    frames = pack.frames.clone()
    frames[::20] = torch.nan
    result = train_whole(config, replace(pack, frames=frames))
    assert result.outcome == Outcome.COLLAPSED
    assert result.steps <= config.steps // 10
    assert result.reason.startswith("diverged: ")


def test_a_collapse_after_the_first_tenth_is_recognised_at_the_next_evaluation(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BreaksLate(CpuLearner):
        def step(self, number: int) -> None:
            super().step(number)
            if number == 49:
                with torch.no_grad():
                    self.model.hidden.bias.fill_(-1e4)

    monkeypatch.setattr(training, "open_learner", BreaksLate)
    rows: list[int] = []

    def report(step: int, _metrics: Metrics) -> bool:
        rows.append(step)
        return False

    result = train(POINTS[0], pack, Protocol(), report)
    assert (result.outcome, result.steps) == (Outcome.COLLAPSED, 60)
    assert rows == [20, 40]
    assert result.best_step in rows


def test_a_leap_of_the_loss_from_which_a_training_comes_back_is_none(pack: Pack) -> None:
    config = BUDGET.replace(d_model=16, dim_feedforward=32, steps=40, lr=0.3, warmup_steps=0)
    learner = CpuLearner(config, pack, Protocol().split(pack)[0], Compute(), ThreadPool(1))
    detector = CollapseDetector(config, pack, Protocol().split(pack)[0])
    learner.step(0)
    assert detector.find(learner, False) == ("", True)
    assert "blown up" in detector.find(learner, True)[0]
    assert train_whole(config, pack).outcome == Outcome.COMPLETE


@pytest.mark.parametrize("steps", [1, 4, 19, 70_000])
def test_it_looks_within_the_first_tenth_of_any_budget(steps: int, pack: Pack) -> None:
    config = BUDGET.with_steps(steps)
    detector = CollapseDetector(config, pack, Protocol().split(pack)[0])
    looks = [step for step in range(1, steps + 1) if detector.is_due(step)]
    assert looks
    assert max(looks) <= max(1, steps // 10)


def test_looking_changes_no_bit_of_what_is_learnt(pack: Pack) -> None:
    config = BUDGET.replace(steps=30, warmup_steps=3, valid_every=30)
    rows, _ = Protocol().split(pack)
    with ThreadPool(1) as pool:
        unseen = CpuLearner(config, pack, rows, Compute(), pool)
        for number in range(config.steps):
            unseen.step(number)
    weights = train_whole(config, pack).weights
    assert all(torch.equal(weights[name], value) for name, value in unseen.model_state().items())


def test_a_model_that_has_learnt_by_heart_has_not_collapsed(pack: Pack) -> None:
    """It is wrong with confidence on other utterances than those it learnt from."""
    labels = pack.labels.clone()
    _, valid = Protocol().split(pack)
    labels[valid] = (labels[valid] + 1) % len(pack.speakers)
    config = BUDGET.replace(steps=200, lr=5e-3, warmup_steps=10, activation="relu", valid_every=50)
    seen: list[Metrics] = []
    result = train(
        config, replace(pack, labels=labels), Protocol(), lambda _, row: bool(seen.append(row))
    )
    assert result.outcome == Outcome.COMPLETE
    assert seen[-1]["loss/whole"] > MAX_LOSS * 1.39, "this test needs confident errors"


@pytest.fixture(scope="session")
def demo_pack(demo: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return open_pack(demo, tmp_path_factory.mktemp("packs"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        DEMO_BUDGET,  # the slowest to begin with
        DEMO_BUDGET.replace(lr=1e-4),
        DEMO_BUDGET.replace(num_layers=6),
        DEMO_BUDGET.replace(d_model=128, num_layers=2, activation="relu", lr=3e-3, warmup_steps=2),
        DEMO_BUDGET.replace(num_layers=4, activation="tanh", norm_first=True, lr=3e-3),
    ],
    ids=lambda config: f"{config.label()} {config.lr}",
)
def test_trainings_that_learn_are_left_alone(
    config: TrialConfig, demo_pack: Pack, watched: Callable[[], list[tuple[float, float]]]
) -> None:
    assert train_whole(config, demo_pack).outcome == Outcome.COMPLETE
    looks = watched()
    assert len(looks) == 8
    assert min(spread for _, spread in looks) > 4 * MIN_SPREAD, "too near for comfort"
    assert max(loss for loss, _ in looks) < 1.5 * torch.tensor(20.0).log()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[float, float]]]:
    """What the detector saw."""
    seen: list[tuple[float, float]] = []
    original = CollapseDetector._look

    def look(self: CollapseDetector, learner: CpuLearner) -> tuple[float, float]:
        seen.append(original(self, learner))
        return seen[-1]

    monkeypatch.setattr(CollapseDetector, "_look", look)
    return lambda: seen
