import math
import random

import numpy as np
import pytest
from scipy.stats import f_oneway

from experiments.analysis.leaderboard import Row
from experiments.report.levels import (
    MAX_FRACTIONS,
    groups,
    importance,
    importances,
    in_order,
    is_continuous,
    varied,
)
from tests.report.rows import ended, numbers, trial


def test_values_stand_in_their_own_order() -> None:
    assert in_order("nhead", [16, 2, 8, 2]) == [2, 8, 16]
    assert in_order("activation", ["tanh", "relu", "sigmoid"]) == ["sigmoid", "relu", "tanh"]
    assert in_order("norm_first", [True, False]) == [False, True]
    assert in_order("activation", ["none of ours", "tanh"]) == ["tanh", "none of ours"]


def test_only_what_varies_is_a_parameter() -> None:
    rows = [trial(number, values={"d_model": 80 + number, "seed": number}) for number in range(2)]
    assert varied(rows) == ["d_model"]
    assert varied(rows[:1]) == varied([]) == []


def test_many_numbers_are_shown_by_quarters_each_trial_once() -> None:
    rows = [trial(number, values={"lr": 1e-4 * 1.5**number}) for number in range(20)]
    assert is_continuous("lr", rows)
    parts = groups("lr", rows)
    assert [len(members) for _, members in parts] == [5, 5, 5, 5]
    assert parts[0][0].startswith("0.0001 to ")
    assert numbers([row for _, members in parts for row in members]) == numbers(rows)
    few = rows[:MAX_FRACTIONS]
    assert not is_continuous("lr", few)
    assert [label for label, _ in groups("lr", few)][:2] == ["0.0001", "0.00015"]


def test_importance_is_epsilon_squared() -> None:
    """Against SciPy's F: epsilon squared is (F - 1) / (F + spare / groups less one)."""
    draw = random.Random(0)  # noqa: S311  # luck, no secret
    rows = [
        trial(number, 0.5 + 0.1 * (number % 3) + draw.gauss(0, 0.1), values={"nhead": number % 3})
        for number in range(30)
    ]
    parts = [[row.whole for row in members] for _, members in groups("nhead", rows)]
    ratio = f_oneway(*parts).statistic
    found = importance("nhead", rows)
    assert found.share == pytest.approx((ratio - 1) / (ratio + 27 / 2))
    assert 0 < found.half_width < 1


def test_the_jackknife_knows_sure_from_unsure() -> None:
    draw = random.Random(1)  # noqa: S311

    def rows(count: int, noise: float) -> list[Row]:
        return [trial(n, 0.4 + 0.2 * (n % 2) + draw.gauss(0, noise), values={"nhead": 1 + n % 2})
                for n in range(count)]  # fmt: skip

    sure, unsure = importance("nhead", rows(80, 0.02)), importance("nhead", rows(8, 0.15))
    assert sure.share > 0.9
    assert sure.half_width < 0.05 < unsure.half_width
    width = np.std([importance("nhead", rows(40, 0.1)).share for _ in range(60)]) * 1.645
    mean_half = np.mean([importance("nhead", rows(40, 0.1)).half_width for _ in range(60)])
    assert mean_half == pytest.approx(width, rel=0.4), "as wide as repeated studies are apart"


def test_what_matters_most_comes_first_and_what_cannot_be_told_last() -> None:
    rows = [
        trial(n, 0.4 + 0.2 * (n % 2) + 0.01 * (n // 4),
              values={"nhead": 1 + n % 2, "d_model": 80 + 48 * (n // 2 % 2), "dim_feedforward": 128 + n})
        for n in range(8)
    ]  # fmt: skip
    found = importances(rows)
    assert found[0].name == "nhead"
    assert [each.name for each in found if math.isnan(each.share)] == ["dim_feedforward"]
    assert found[-1].name == "dim_feedforward"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_or_equal_trials_have_no_importance(count: int) -> None:
    rows = [trial(n, 0.5, values={"nhead": n % 2}) for n in range(count)]
    assert all(math.isnan(each.share) for each in importances(rows))
    assert importances([*rows, ended(9, "pruned", 0.9, values={"d_model": 7})]) == importances(rows)
