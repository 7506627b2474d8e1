import optuna
import pytest
from optuna.trial import TrialState, create_trial

from experiments.proposals.attributes import INDEX
from experiments.proposals.finalists import digest_of, finalists, space_of, still_to_train
from experiments.proposals.presets import Preset
from speaker.config import HOMEWORK_BASELINE, TrialConfig

ONE, TWO, THREE = (HOMEWORK_BASELINE.replace(d_model=width) for width in (80, 128, 256))


def ended(index: int, value: float | None) -> optuna.trial.FrozenTrial:
    """Return a trial of a preset, failed where it has no value."""
    state = TrialState.FAIL if value is None else TrialState.COMPLETE
    return create_trial(state=state, value=value, user_attrs={INDEX: index})


def told(left: list[Preset]) -> list[tuple[int, int | None]]:
    return [(each.values["d_model"], each.replicate) for each in left]


def test_finalists_are_told_apart_by_their_points_and_not_by_their_rank() -> None:
    space = space_of([ONE, TWO])
    points = finalists(space, [ONE, TWO], 2)
    assert points == finalists(space, [TWO, ONE], 2)
    assert [each.replicate for each in points] == [0, 0, 1, 1]
    assert points == finalists(space, [ONE, TWO], 3)[:4]
    assert digest_of([ONE, TWO]) == digest_of([TWO, ONE])
    assert digest_of([ONE, TWO]) != digest_of([ONE, THREE])


def test_their_space_varies_what_they_differ_in() -> None:
    rescued = TWO.replace(norm_first=True, lr=3e-4)
    assert space_of([ONE, rescued]).choices == {
        "d_model": (80, 128),
        "norm_first": (False, True),
        "lr": (3e-4, 1e-3),
    }
    assert space_of([ONE]).choices == {"d_model": (80,)}


@pytest.mark.parametrize("points", [[ONE, TWO], [ONE, TWO, THREE]], ids=len)
def test_while_nobody_is_behind_all_are_trained(points: list[TrialConfig]) -> None:
    presets = finalists(space_of(points), points, 2)
    assert still_to_train(presets, []) == list(presets)
    trials = [ended(index, 0.5) for index in range(len(points))]
    assert still_to_train(presets, trials) == list(presets[len(points) :])


def test_a_point_that_is_far_behind_leaves_and_the_last_one_ends_the_race() -> None:
    points = [ONE, TWO, THREE]
    presets = finalists(space_of(points), points, 5)
    order = [each.values["d_model"] for each in presets[:3]]
    scores = {80: (0.60, 0.62), 128: (0.61, 0.61), 256: (0.2, 0.21)}
    trials = [ended(index, scores[order[index % 3]][index // 3]) for index in range(6)]
    left = told(still_to_train(presets, trials))
    assert {width for width, _ in left} == {80, 128}
    assert sorted(seed for _, seed in left if seed is not None) == [2, 2, 3, 3, 4, 4]
    alone = [ended(index, 0.9 if order[index % 3] == 80 else 0.1) for index in range(6)]
    assert still_to_train(presets, alone) == []


def test_what_cannot_be_trained_has_lost() -> None:
    points = [ONE, TWO]
    presets = finalists(space_of(points), points, 4)
    order = [each.values["d_model"] for each in presets[:2]]
    trials = [ended(index, 0.6 if order[index % 2] == 80 else None) for index in range(4)]
    assert still_to_train(presets, trials) == []


def test_more_seeds_go_on_and_fewer_look_at_those_alone() -> None:
    points = [ONE, TWO]
    trials = [ended(index, 0.5) for index in range(4)]
    space = space_of(points)
    assert still_to_train(finalists(space, points, 2), trials) == []
    assert len(still_to_train(finalists(space, points, 3), trials)) == 2
    assert still_to_train(finalists(space, points, 1), trials) == []
