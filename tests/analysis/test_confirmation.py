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
    found = confirm(rows)
    assert found
    best, *others = found.points
    assert best.point == "good"
    assert best.mean == pytest.approx(sum(swings) / 4)
    assert best.difference == 0
    worse = next(each for each in others if each.point == "worse")
    assert worse.difference == pytest.approx(sum(gaps) / 4)
    low, high = ttest_rel(swings, worse.values).confidence_interval(0.90)
    assert worse.half_width == pytest.approx((high - low) / 2)
    text = describe_confirmation(found)
    assert "good is best of 3. On new utterances expect 0.5" in text
    assert "It cannot be told from noisy." in text
    assert max(map(len, text.splitlines())) < 80


def test_a_point_that_left_is_compared_on_the_seeds_it_had() -> None:
    rows = [row("a", seed, 0.6 + seed / 100) for seed in range(4)]
    rows += [row("b", seed, 0.3) for seed in range(2)]
    found = confirm(rows)
    assert found
    assert [(each.point, len(each.values)) for each in found.points] == [("a", 4), ("b", 2)]
    assert found.points[1].difference == pytest.approx(0.305)


def test_a_seed_on_which_a_point_collapsed_counts_as_nothing_told_right() -> None:
    rows = [row("a", 0, 0.5), row("a", 1, 0.6), row("b", 0, 0.7), row("b", 1, 0.7, "collapsed")]
    found = confirm(rows)
    assert found
    assert [(each.point, each.values) for each in found.points] == [
        ("a", (0.5, 0.6)),
        ("b", (0.7, 0.0)),
    ]
    assert "It cannot be told from b." in describe_confirmation(found)


def test_nothing_is_said_before_a_training_is_complete() -> None:
    assert confirm([row("b", 0, None, "failed")]) is None
    assert confirm([]) is None


def test_of_one_seed_no_width_is_invented() -> None:
    found = confirm([row("a", 0, 0.6), row("b", 0, 0.5)])
    assert found
    text = describe_confirmation(found)
    assert "nan" not in text
    assert "0.1000, of one seed" in text
