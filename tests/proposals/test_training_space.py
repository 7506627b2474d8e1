"""The space `training`, which follows its base, and the presets of published points."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest

from experiments.analysis.leaderboard import ranked
from experiments.analysis.reproduction import describe_reproduction
from experiments.proposals.presets import REPRODUCED, four_edits, homework_points, reproduce
from experiments.proposals.space import REPRODUCE, Space, find_space
from experiments.study.search import StudyWorker
from experiments.study.settings import SearchSettings
from speaker.common.errors import UserError
from speaker.config import DEMO_BUDGET, HOMEWORK_BASELINE, TrialConfig
from tests.helpers import PLAN, TINY
from tests.study.test_search import fast, open_search, work

__all__ = ["fast", "open_search"]  # fixtures

VARIED = {
    "d_model", "nhead", "num_layers", "activation", "lr", "warmup_steps", "dropout",
    "dim_feedforward", "batch_size", "segment_len", "norm_first",
}  # fmt: skip


def space_of(base: TrialConfig, utterances: int = 10**6) -> Space:
    return find_space("training", base, utterances)


@pytest.mark.parametrize("steps", [1, 2, 9, 50, 999, 70_000, 210_000])
def test_every_combination_is_legal_for_any_budget(steps: int) -> None:
    base = HOMEWORK_BASELINE.with_steps(steps)
    space = space_of(base)
    assert set(space.definition()) == VARIED
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [space.sample(study.ask(), base) for _ in range(60)]  # raises for an illegal one
    assert len({point.fingerprint() for point in points}) == 60
    assert max(space.choices["warmup_steps"]) <= max(steps // 5, base.warmup_steps)
    for name in VARIED - {"warmup_steps"}:
        assert len({getattr(point, name) for point in points}) > 1, name


@pytest.mark.parametrize("base", [HOMEWORK_BASELINE, DEMO_BUDGET, TINY, TINY.with_steps(1)])
def test_the_homeworks_points_lie_in_it(base: TrialConfig) -> None:
    named = {preset.name: preset.values for preset in homework_points(space_of(base), base=base)}
    assert set(named) == {"homework-baseline", "homework-edited"} or base.dim_feedforward < 128
    for values in named.values():
        assert values["segment_len"] == base.segment_len
        assert values["warmup_steps"] == base.warmup_steps
    if named:
        assert len(four_edits(space_of(base), 1, base)) == 16


def test_no_batch_is_larger_than_the_corpus() -> None:
    base = HOMEWORK_BASELINE.replace(batch_size=32)
    assert space_of(base).choices["batch_size"] == (16, 32, 64)
    assert space_of(base, 54).choices["batch_size"] == (16, 32)
    assert space_of(base.replace(batch_size=1), 1).choices["batch_size"] == (1,)


def test_it_is_narrowed_like_any_other() -> None:
    space = space_of(HOMEWORK_BASELINE)
    fixed: dict[str, Any] = {"lr": 3e-4, "batch_size": 48}
    narrow = space.narrowed(fixed, {"warmup_steps": (1000,), "norm_first": (True,)})
    assert set(narrow.distributions()) == VARIED - set(fixed)
    assert narrow.definition()["warmup_steps"] == "one of 1000"
    with pytest.raises(UserError, match="--choices warmup_steps must be within the space"):
        space.narrowed({}, {"warmup_steps": (1001,)})


def test_what_costs_the_same_is_measured_once() -> None:
    points = space_of(HOMEWORK_BASELINE).points(HOMEWORK_BASELINE)
    assert len(points) == 600 * 4 * 3 * 3
    assert points[0].dim_feedforward == 128
    assert (points[-1].batch_size, points[-1].segment_len, points[-1].d_model) == (64, 256, 512)


@pytest.mark.usefixtures("fast")
def test_another_choice_or_budget_is_another_study(
    open_search: Callable[[SearchSettings], StudyWorker],
) -> None:
    space = space_of(PLAN.base, 54)
    plan = replace(PLAN, space=space, presets=(), trials=2)
    worker = open_search(plan)
    work(worker)
    assert all(set(trial.params) == VARIED for trial in worker.study.trials)
    narrow = space.narrowed({}, {"norm_first": (True,)})
    with pytest.raises(UserError, match="space.norm_first is one of False, True there and one of"):
        open_search(replace(plan, space=narrow))
    fixed = space.narrowed({"batch_size": 8}, {})
    with pytest.raises(UserError, match="space.batch_size is one of 4, 8, 16 there and none here"):
        open_search(replace(plan, space=fixed))


def test_the_published_points_are_what_was_published() -> None:
    presets = {preset.name: preset for preset in reproduce(REPRODUCE, 1, DEMO_BUDGET)}
    assert {name: published for name, (_, published) in REPRODUCED.items()} == {
        "published-sample": 0.857,
        "published-two-layers": 0.897,
        "published-post-norm": 0.521,
        "published-post-norm-slow": 0.95,
        "published-pre-norm": 0.951,
    }
    assert all(REPRODUCE.holds(preset.values) for preset in presets.values())
    sample = {"d_model": 80, "num_layers": 1, "norm_first": False, "lr": 1e-3}
    assert presets["published-sample"].values == sample
    wide = {**sample, "d_model": 256, "num_layers": 3}
    assert presets["published-post-norm"].values == wide
    assert presets["published-post-norm-slow"].values == {**wide, "lr": 3e-4}
    assert presets["published-pre-norm"].values == {**wide, "norm_first": True}


@pytest.mark.usefixtures("fast")
def test_they_are_reproduced_on_each_seed_and_compared(
    open_search: Callable[[SearchSettings], StudyWorker],
) -> None:
    presets = reproduce(REPRODUCE, 2, PLAN.base)
    plan = replace(PLAN, space=REPRODUCE, presets=presets, trials=10, preset="reproduce on 2 seeds")
    work(open_search(plan), 4)
    worker = open_search(plan)  # resumed
    work(worker)
    configs = [worker.shared.config(trial) for trial in worker.study.trials]
    assert [config.lr for config in configs] == [1e-3, 1e-3, 1e-3, 3e-4, 1e-3] * 2
    assert [config.norm_first for config in configs] == [False, False, False, False, True] * 2
    assert len({config.seed for config in configs}) == 2
    rows = ranked(worker._store, "s")
    lines = describe_reproduction(rows).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == [
        "sample", "two-layers", "post-norm", "post-norm-slow", "pre-norm",
    ]  # fmt: skip
    mine = [row.whole for row in rows if row.preset == "published-two-layers"]
    assert len(mine) == 2
    measured = sum(value or 0 for value in mine) / 2
    words = lines[2].split()
    assert words[1:3] == ["0.897", f"{measured:.4f}"]
    assert words[4:] == ["2", f"{measured - 0.897:+.4f}"]
    assert "compare the order" in lines[6]
    first = next(row for row in rows if row.preset == "published-sample")
    others = [row for row in rows if row is not first]
    ended = describe_reproduction([replace(first, state="collapsed"), *others])
    assert "1 of 2 seeds collapsed" in ended.splitlines()[1]
    assert describe_reproduction([replace(first, preset="")]) == ""
    with pytest.raises(UserError, match="preset is reproduce on 2 seeds there and reproduce on 3"):
        open_search(replace(plan, preset="reproduce on 3 seeds"))
