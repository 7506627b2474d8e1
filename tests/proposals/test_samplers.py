from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from experiments.proposals.samplers import SAMPLERS, make_sampler
from experiments.proposals.space import HOMEWORK, WIDE, Space
from speaker.config import HOMEWORK_BASELINE

SMALL = Space(
    "small", choices={"d_model": (80, 128), "nhead": (1, 2)}, integers={"num_layers": (1, 2)}
)


def search(space: Space, name: str, trials: int) -> list[dict[str, Any]]:
    """Return the points that a study proposes, of which small models score best."""
    study = optuna.create_study(direction="maximize")
    for number in range(trials):
        study.sampler = make_sampler(name, space, number)
        trial = study.ask()
        config = space.sample(trial, HOMEWORK_BASELINE)
        study.tell(trial, 1 / config.d_model + 0.01 * config.num_layers)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_point_is_proposed_twice(name: str) -> None:
    trials = 14 if name == "gp" else 50
    points = [tuple(point.values()) for point in search(HOMEWORK, name, trials)]
    assert len(set(points)) == trials
    assert all(len(point) == 4 for point in points)


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_a_small_space_is_tried_whole_before_a_point_comes_again(name: str) -> None:
    points = [tuple(sorted(point.items())) for point in search(SMALL, name, 10)]
    assert len(set(points[:8])) == 8
    assert set(points[8:]) <= set(points[:8])


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_the_same_seeds_propose_the_same(name: str) -> None:
    assert search(HOMEWORK, name, 15) == search(HOMEWORK, name, 15)


def test_a_space_of_real_numbers_needs_no_list_of_points() -> None:
    points = search(WIDE, "tpe", 15)
    assert len({point["lr"] for point in points}) == 15


def test_a_given_point_is_kept_and_not_proposed_again() -> None:
    study = optuna.create_study(direction="maximize")
    given = {"d_model": 80, "nhead": 1, "num_layers": 1}
    study.enqueue_trial(given)
    for number in range(8):
        study.sampler = make_sampler("random", SMALL, number)
        trial = study.ask()
        SMALL.sample(trial, HOMEWORK_BASELINE)
        study.tell(trial, state=TrialState.FAIL)  # what failed counts as tried
    points = [trial.params for trial in study.trials]
    assert points[0] == given
    assert points.count(given) == 1


def test_a_trial_that_is_opened_again_keeps_its_point() -> None:
    study = optuna.create_study(direction="maximize")
    study.sampler = make_sampler("tpe", SMALL, 0)
    trial = study.ask()
    config = SMALL.sample(trial, HOMEWORK_BASELINE)
    study.sampler = make_sampler("tpe", SMALL, 0)
    again = optuna.trial.Trial(study, trial._trial_id)
    assert SMALL.sample(again, HOMEWORK_BASELINE) == config
