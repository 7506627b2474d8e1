import math

import pytest
from scipy.stats import ttest_rel

from experiments.analysis.confirmation import confirm, describe_confirmation
from experiments.analysis.leaderboard import Row


def row(point: str, seed: int, whole: float | None, state: str = "complete") -> Row:
    return Row(f"{point}{seed}", "0", point, state, "finalist", str(seed), whole, 0.1, 1, 1.0)


def test_points_are_compared_seed_by_seed() -> None:
    """Both swing with the seed, and one is always a little better: that counts."""
    swings = (0.50, 0.58, 0.44, 0.61)
    gaps = (0.020, 0.025, 0.015, 0.021)
    rows = [row("good", seed, value) for seed, value in enumerate(swings)]
    rows += [
        row("worse", seed, value - gap)
        for seed, (value, gap) in enumerate(zip(swings, gaps, strict=True))
    ]
    rows += [row("noisy", seed, value) for seed, value in enumerate((0.60, 0.45, 0.60, 0.40))]
    best, *others = confirm(rows)
    assert best.point == "good"
    assert best.mean == pytest.approx(sum(swings) / 4)
    assert best.difference == 0
    worse = next(each for each in others if each.point == "worse")
    assert worse.difference == pytest.approx(sum(gaps) / 4)
    low, high = ttest_rel(swings, worse.values).confidence_interval(0.90)
    assert worse.half_width == pytest.approx((high - low) / 2)
    text = describe_confirmation([best, *others])
    assert "good is best of 3 on 4 seeds, and noisy cannot be told from it." in text


def test_only_seeds_on_which_all_are_complete_count() -> None:
    rows = [row("a", 0, 0.5), row("a", 1, 0.6), row("b", 0, 0.7), row("b", 1, None, "failed")]
    found = confirm(rows)
    assert [(each.point, each.values) for each in found] == [("b", (0.7,)), ("a", (0.5,))]
    assert math.isnan(found[1].half_width)
    assert "a cannot be told from it" in describe_confirmation(found)
    assert confirm([row("a", 0, 0.5), row("b", 1, 0.5)]) == []
    assert confirm([]) == []
