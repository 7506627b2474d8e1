from typing import Any

import optuna
import pytest

from experiments.proposals.presets import four_edits, homework_points
from experiments.proposals.space import HOMEWORK, SPACES, WIDE, Space, find_space, parse_field
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
    with pytest.raises(UserError, match="homework, wide, training, but got 'small'"):
        find_space("small")


def test_a_space_is_narrowed_by_fixed_fields_and_choices() -> None:
    name, values = parse_field("d_model=128,256")
    assert (name, values) == ("d_model", (128, 256))
    space = HOMEWORK.narrowed({"nhead": 4}, {name: values, "num_layers": (1, 6)})
    assert set(space.distributions()) == {"d_model", "activation", "num_layers"}
    assert len(space.points(HOMEWORK_BASELINE)) == 2 * 5 * 2
    assert space.definition()["num_layers"] == "one of 1, 6"
    assert HOMEWORK.narrowed({}, {}) == HOMEWORK
    assert set(WIDE.narrowed({"lr": 3e-4}, {}).log_floats) == {"weight_decay"}


@pytest.mark.parametrize(
    ("choices", "rule"),
    [
        ({"d_model": (96,)}, "--choices d_model must be within .*one of 80, 128.*, but got 96"),
        ({"num_layers": (7,)}, "--choices num_layers must be within .*from 1 to 6.*, but got 7"),
        ({"lr": (1e-3,)}, "--choices must be of a field that the space 'homework' varies"),
    ],
)
def test_choices_outside_of_a_space_are_refused(
    choices: dict[str, tuple[Any, ...]], rule: str
) -> None:
    with pytest.raises(UserError, match=rule):
        HOMEWORK.narrowed({}, choices)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("d_model", "must be given as NAME=VALUE"),
        ("width=3", "be one of d_model, nhead"),
        ("seed=3", "be one of d_model"),
        ("d_model=wide", "d_model must be int, but got 'wide'"),
        ("lr=1e-3,x", "lr must be float, but got 'x'"),
        ("norm_first=maybe", "norm_first must be bool, but got 'maybe'"),
    ],
)
def test_what_is_no_field_is_refused(text: str, rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        parse_field(text)


def test_fields_are_read_as_what_they_are() -> None:
    assert parse_field("norm_first=true,False") == ("norm_first", (True, False))
    assert parse_field("lr=3e-4") == ("lr", (3e-4,))
    assert parse_field("activation=relu") == ("activation", ("relu",))


def test_only_presets_that_lie_in_a_narrowed_space_are_tried() -> None:
    fixed = {"d_model": 80}
    presets = homework_points(HOMEWORK.narrowed(fixed, {}), fixed=fixed)
    assert [preset.name for preset in presets] == ["homework-baseline"]
    assert "d_model" not in presets[0].values
    space = HOMEWORK.narrowed({}, {"d_model": (128, 256)})
    assert homework_points(space) == ()
    with pytest.raises(UserError, match="needs a space that varies all four"):
        four_edits(HOMEWORK.narrowed(fixed, {}), 1)
    with pytest.raises(UserError, match="needs both values of all four"):
        four_edits(space, 1)
