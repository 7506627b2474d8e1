from statistics import mean
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from scipy.stats import norm

from experiments.proposals.model_sampler import STARTUP, ModelSampler, expected_improvement
from experiments.proposals.samplers import make_sampler
from experiments.proposals.space import HOMEWORK, WIDE, Space
from speaker.config import HOMEWORK_BASELINE

SMALL = Space(
    "small", choices={"d_model": (80, 128), "nhead": (1, 2)}, integers={"num_layers": (1, 6)}
)


def worth(point: dict[str, Any]) -> float:
    """Of two layers the best, and the wider the better."""
    return 0.3 + 0.02 * (point["d_model"] > 128) - 0.04 * abs(point["num_layers"] - 2)


def search(space: Space, sampler: str, trials: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return the points of a search in which only one trial in three is trained to its end."""
    study = optuna.create_study(direction="maximize")
    for number in range(trials):
        study.sampler = make_sampler(sampler, space, 1_000 * seed + number)
        trial = study.ask()
        space.sample(trial, HOMEWORK_BASELINE)
        value = worth(trial.params)
        for step in (20, 60, 100):
            trial.report(value * (1 - 0.5 ** (step / 20)), step)
            if step < 100 and number % 3:
                break
        if number % 3:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
    return [trial.params for trial in study.trials]


def test_the_model_proposes_better_points_than_chance_does() -> None:
    """After the first ones, which are drawn at random."""
    found = {
        sampler: mean(
            worth(point) for seed in range(3) for point in search(HOMEWORK, sampler, 24, seed)[14:]
        )
        for sampler in ("model", "random")
    }
    assert found["model"] > found["random"] + 0.03


def test_the_same_trials_and_seed_propose_the_same_and_no_point_comes_twice() -> None:
    points = search(HOMEWORK, "model", STARTUP + 4)
    assert points == search(HOMEWORK, "model", STARTUP + 4)
    assert len({tuple(point.values()) for point in points}) == len(points)


@pytest.mark.parametrize("space", [SMALL, WIDE], ids=lambda space: space.name)
def test_a_space_may_be_small_or_have_no_end(space: Space) -> None:
    """Once each point of a small one is tried, points come again."""
    trials = 26 if space is SMALL else STARTUP + 2
    points = [tuple(point.values()) for point in search(space, "model", trials)]
    assert len(set(points)) == min(trials, 24)


def test_trials_without_a_value_teach_nothing() -> None:
    study = optuna.create_study(direction="maximize")
    for number in range(STARTUP + 1):
        study.sampler = ModelSampler(SMALL, number)
        trial = study.ask()
        SMALL.sample(trial, HOMEWORK_BASELINE)
        study.tell(trial, state=TrialState.FAIL)
    last = study.trials[-1]
    assert ModelSampler(SMALL, 0).sample_relative(study, last, SMALL.distributions()) == {}


def test_where_trainings_collapse_it_proposes_less() -> None:
    """They have no value; random trials hit such points every other time."""
    study = optuna.create_study(direction="maximize")
    collapsed = []
    for number in range(30):
        study.sampler = make_sampler("model", HOMEWORK, number)
        trial = study.ask()
        HOMEWORK.sample(trial, HOMEWORK_BASELINE)
        collapsed.append(trial.params["num_layers"] > 3)
        if collapsed[-1]:
            trial.set_constraint("collapsed", 1.0)
            study.tell(trial, state=TrialState.PRUNED)
            continue
        value = 0.5 + 0.05 * (trial.params["num_layers"] == 2)
        trial.report(value, 100)
        study.tell(trial, value)
    assert sum(collapsed[:STARTUP]) > 3
    assert sum(collapsed[STARTUP:]) < 8


def test_expected_improvement_is_the_mean_of_what_exceeds_the_best() -> None:
    means, deviations = torch.tensor([0.5, 0.7, 0.4]), torch.tensor([0.1, 0.05, 0.3])
    draws = means + deviations * torch.tensor(
        norm.rvs(size=(200_000, 3), random_state=0), dtype=torch.float32
    )
    expected = (draws - 0.6).clamp(min=0).mean(0)
    assert torch.allclose(expected_improvement(means, deviations, 0.6), expected, atol=1e-3)
