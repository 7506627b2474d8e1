import re
from dataclasses import replace

import pytest
import torch

from experiments.context import TrainingContext, move_to_device
from experiments.proposals.space import HOMEWORK
from speaker.common.devices import CPU, Compute, find_precision
from speaker.common.errors import DeviceLostError, UserError
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.model.classifier import SpeakerClassifier
from speaker.training import lookahead
from speaker.training.evaluation import Evaluator
from speaker.training.lookahead import (
    Cost,
    describe,
    describe_first,
    forecast,
    forecast_trials,
    measure,
)
from tests.helpers import LOSS, TINY

# Holds tensors and computes nothing: a device that fails at its first step.
NOWHERE = torch.device("meta")
POINTS = HOMEWORK.points(TINY)


def put(pack: Pack, compute: Compute) -> Pack:
    return pack.to(compute.device, compute.precision)


def test_measures_a_point_and_leaves_no_trace(pack: Pack) -> None:
    before = torch.get_rng_state()
    cost = measure(TINY, pack, Protocol(), Compute())
    assert cost.config == TINY
    assert 0 < cost.step < 1
    assert 0 < cost.evaluation < 1
    assert cost.memory > 50 << 20
    model = SpeakerClassifier(TINY, pack.n_mels, len(pack.speakers))
    assert cost.disk == 4 * sum(each.numel() for each in model.parameters())
    assert cost.seconds() == pytest.approx(12 * cost.step + 3 * cost.evaluation)
    torch.set_rng_state(before)


def test_a_rehearsed_evaluation_takes_as_long_as_one(pack: Pack) -> None:
    ticks = iter(range(1000))
    evaluate = Evaluator(pack, Protocol(), clock=lambda: float(next(ticks)))
    model = SpeakerClassifier(TINY, 40, 4).train()
    assert evaluate.rehearse(model, LOSS) == len(evaluate._wholes) + len(evaluate._crops)
    assert model.training


def test_a_device_that_fails_gives_way_step_by_step_down_to_the_cpu(pack: Pack) -> None:
    wanted = Compute(
        NOWHERE, torch.bfloat16, graph=True, is_automatic=True, fallbacks=("an older one",)
    )
    compute, there, costs = lookahead.find_working_compute(
        [TINY], lambda each: put(pack, each), Protocol(), wanted
    )
    assert compute.device == CPU
    assert compute.precision == find_precision("auto", CPU)
    assert there.frames.device == CPU
    assert [cost.config for cost in costs] == [TINY]
    older, *failed = compute.fallbacks
    assert older == "an older one"
    assert [reason.partition(" failed: ")[0] for reason in failed] == [
        "meta, bf16, captured steps", "meta, bf16, plain steps", "meta, fp32, plain steps",
    ]  # fmt: skip
    assert all(re.search("failed: .*meta", reason) and "\n" not in reason for reason in failed)


def test_a_lost_device_ends_the_look_ahead_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(_compute: Compute) -> Pack:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with ...")

    monkeypatch.setattr("speaker.training.lookahead.configure_process", lambda _compute: None)
    for is_automatic in (True, False):
        with pytest.raises(
            DeviceLostError,
            match=r"^cuda:0 was lost \(CUDA error: .*\) before the first trial; try",
        ):
            wanted = Compute(torch.device("cuda", 0), is_automatic=is_automatic)
            lookahead.find_working_compute([TINY], lose, Protocol(), wanted)


def test_a_device_that_was_asked_for_is_not_replaced(pack: Pack) -> None:
    wanted = Compute(NOWHERE, torch.bfloat16)
    with pytest.raises(
        UserError, match=r"--device meta must do a step, but: .*; use --device cpu$"
    ):
        lookahead.find_working_compute([TINY], lambda each: put(pack, each), Protocol(), wanted)


def test_what_failed_is_on_the_screen_and_in_the_tags(
    context: TrainingContext, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = replace(context, compute=Compute(NOWHERE, is_automatic=True))
    settled, costs = move_to_device(wanted, [TINY])
    assert "warning: meta, fp32, plain steps failed" in capsys.readouterr().err
    assert settled.tags()["device.fallbacks"].startswith("meta, fp32, plain steps failed: ")
    assert settled.tags()["device"] == settled.compute.describe()
    assert len(costs) == 1


def test_a_bug_on_the_cpu_passes_through() -> None:
    def broken(_compute: Compute) -> Pack:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        lookahead.find_working_compute([TINY], broken, Protocol(), Compute())


def test_a_point_that_does_not_fit_has_no_cost(pack: Pack) -> None:
    huge = TINY.replace(dim_feedforward=2**44)
    compute, _, costs = lookahead.find_working_compute(
        [TINY, huge], lambda each: put(pack, each), Protocol(), Compute()
    )
    assert [cost.config for cost in costs] == [TINY]
    assert "does not fit into the memory" in describe([TINY, huge], costs, 2, compute)
    with pytest.raises(UserError, match="the smallest point must fit into the memory of cpu"):
        lookahead.find_working_compute([huge], lambda each: put(pack, each), Protocol(), Compute())


def test_points_are_all_of_the_space_in_the_order_of_their_size() -> None:
    assert len(POINTS) == len(set(POINTS)) == 600
    assert POINTS[0].label().startswith("d80 h1 L1")
    assert (POINTS[-1].d_model, POINTS[-1].num_layers) == (512, 6)


def test_a_forecast_lies_between_what_was_measured() -> None:
    small, large = Cost(POINTS[0], 0.001, 0.0, 0), Cost(POINTS[-1], 0.1, 0.0, 0)
    steps = TINY.steps
    assert forecast(POINTS[:1], [small, large]) == pytest.approx(steps * 0.001)
    assert forecast(POINTS[-1:], [small, large]) == pytest.approx(steps * 0.1)
    assert steps * 0.01 < forecast(POINTS, [small, large]) < steps * 0.05
    assert forecast(POINTS, [small]) == pytest.approx(steps * 0.001)


def test_the_description_says_what_it_will_take() -> None:
    small = Cost(POINTS[0], 0.00123, 0.5, 1 << 30, disk=1 << 20)
    large = Cost(POINTS[-1], 0.0456, 9.0, 2 << 30, disk=40 << 20)
    line = describe(POINTS, [small, large], 50, Compute())
    assert re.fullmatch(
        r"A step takes 1.23 ms \(d80 h1 L1 \w+\) to 45.6 ms \(d512 h\d+ L6 \w+\); 50 trials take about \d+.\d minutes, "
        r"where none is stopped early, 2.0 GiB of memory and \d{3} MiB of disk for the weights\.",
        line,
    ), line
    one = describe(
        [TINY],
        [Cost(TINY, 0.1, 0.1, 1 << 29, disk=3 << 20)],
        1,
        Compute(torch.device("cuda", 0), graph=True),
        jobs=2,
    )
    assert one == (
        "A step takes 100 ms (d16 h2 L1 sigmoid), captured as one CUDA graph; 1 trial takes about "
        "2 seconds, where none is stopped early, 0.5 GiB of memory for each job, of which "
        "they share the data, and 3 MiB of disk for the weights."
    )


def test_trials_whose_points_are_known_cost_what_these_do() -> None:
    small, large = Cost(POINTS[0], 1.0, 0.0, 0, disk=10), Cost(POINTS[-1], 9.0, 0.0, 0, disk=90)
    costs, middle = [small, large], forecast(POINTS, [small, large])
    known = [POINTS[0], POINTS[-1]]
    assert forecast_trials(POINTS, costs, 2, known) == pytest.approx(10 * TINY.steps)
    assert forecast_trials(POINTS, costs, 5, known) == pytest.approx(10 * TINY.steps + 3 * middle)
    assert forecast_trials(POINTS, costs, 2, known, lambda cost: cost.disk) == pytest.approx(100)
    assert forecast_trials(POINTS, costs, 3) == pytest.approx(3 * middle)


def test_the_first_points_are_said_to_cost_their_part() -> None:
    """12 steps of 1 and 9 s, and four trials of 12 or, at a fifth, 2.4 s each: 120 of 168 or
    129.6 s.
    """
    costs = [Cost(POINTS[0], 1.0, 0.0, 0), Cost(POINTS[-1], 9.0, 0.0, 0)]
    first = [POINTS[0], POINTS[-1]]
    names = f"{POINTS[0].label()} for about 12 seconds, {POINTS[-1].label()} for about 1.8 minutes"
    assert describe_first(POINTS[:1], costs, 6, first, 0.2) == (
        f"{names}, 71 % of the time where no other is stopped early, 93 % where all are."
    )
    assert describe_first(POINTS[:1], costs, 6, first, 1.0) == f"{names}, 71 % of the time."
    assert describe_first(POINTS, costs, 2, first, 0.2) == f"{names}, 100 % of the time."
