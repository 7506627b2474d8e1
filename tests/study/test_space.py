import optuna
import pytest

from experiments.study.presets import homework_points
from experiments.study.space import HOMEWORK, SPACES, Space, find_space
from speaker.common.errors import UserError
from speaker.config import HOMEWORK_BASELINE, HOMEWORK_EDITED, TrialConfig


@pytest.mark.parametrize("space", SPACES.values(), ids=lambda space: space.name)
def test_every_sample_is_legal_and_only_varies_what_it_says(space: Space) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    base = HOMEWORK_BASELINE.with_steps(77)
    points = [space.sample(study.ask(), base) for _ in range(100)]
    varied = set(space.definition())
    for name, value in base.to_dict().items():
        seen = {getattr(point, name) for point in points}
        assert (len(seen) > 1) == (name in varied), name
        assert name in varied or seen == {value}
    assert len({point.fingerprint() for point in points}) > 50


def test_the_homework_space_holds_what_was_edited_by_hand() -> None:
    assert set(HOMEWORK.definition()) == {"d_model", "nhead", "num_layers", "activation"}
    assert HOMEWORK.definition()["activation"] == "one of sigmoid, relu, gelu, tanh, silu"


@pytest.mark.parametrize("space", SPACES.values(), ids=lambda space: space.name)
def test_the_homeworks_points_lie_in_every_space(space: Space) -> None:
    study = optuna.create_study()
    sampled: list[TrialConfig] = []
    for preset in homework_points(space):
        study.enqueue_trial(preset.values)
        sampled.append(space.sample(study.ask(), HOMEWORK_BASELINE))
    assert sampled == [HOMEWORK_BASELINE, HOMEWORK_EDITED]
    for trial in study.trials:
        for name, distribution in trial.distributions.items():
            assert distribution._contains(distribution.to_internal_repr(trial.params[name]))


def test_a_space_with_an_illegal_combination_is_refused() -> None:
    with pytest.raises(UserError, match="'odd' 3 does not divide 80"):
        Space("odd", choices={"d_model": (60, 80), "nhead": (2, 3)})


def test_an_unknown_space_names_the_known() -> None:
    with pytest.raises(UserError, match="homework, wide, but got 'small'"):
        find_space("small")
