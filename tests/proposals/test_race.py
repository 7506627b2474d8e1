import random
from statistics import mean

import pytest

from experiments.proposals.race import still_racing, winner


def draw_race(seed: int, worths: dict[str, float], seeds: int) -> dict[str, dict[int, float]]:
    """Return the scores of points of these worths; seeds differ by 0.03."""
    draw = random.Random(seed)  # noqa: S311
    scores: dict[str, dict[int, float]] = {point: {} for point in worths}
    for number in range(seeds):
        for point in still_racing(scores):
            scores[point][number] = worths[point] + draw.gauss(0, 0.03)
    return scores


def test_a_point_that_is_far_behind_leaves_and_a_close_one_stays() -> None:
    races = [draw_race(seed, {"a": 0.6, "b": 0.6, "far": 0.4}, 5) for seed in range(40)]
    assert mean(len(race["far"]) for race in races) < 3
    assert mean(len(race["a"]) + len(race["b"]) for race in races) > 8.5


def test_the_best_seldom_leaves() -> None:
    races = [draw_race(seed, {"a": 0.60, "b": 0.57, "c": 0.55}, 5) for seed in range(100)]
    assert mean("a" in still_racing(race) for race in races) > 0.85


def test_nobody_leaves_on_one_seed_or_while_a_score_is_missing() -> None:
    assert still_racing({"a": {0: 0.9}, "b": {0: 0.1}}) == ["a", "b"]
    assert still_racing({"a": {0: 0.9, 1: 0.9}, "b": {0: 0.1}}) == ["a", "b"]
    assert still_racing({"a": {0: 0.9, 1: 0.9}, "b": {0: 0.1, 1: 0.1}}) == ["a"]
    assert still_racing({}) == []


def test_who_has_left_stays_away() -> None:
    """What came after does not bring it back: a race that is resumed goes on as it was."""
    scores = {"a": {0: 0.9, 1: 0.9, 2: 0.0}, "b": {0: 0.1, 1: 0.1}}
    assert still_racing(scores) == ["a"]


def test_the_winner_is_not_flattered_and_its_interval_holds_the_truth() -> None:
    """Of five equal points the highest mean of four seeds flatters by 0.017 on average."""
    names = dict.fromkeys("abcde", 0.6)
    shown, expected, held = [], [], []
    for seed in range(200):
        scores = draw_race(seed, names, 4)
        found = winner(scores, utterances=10_000, agreement=0.0)
        shown.append(mean(scores[found.point].values()) - 0.6)
        expected.append(found.expected.mean - 0.6)
        low, high = found.expected.interval()
        held.append(low <= 0.6 <= high)
    assert mean(shown) > 0.012
    assert abs(mean(expected)) < 0.6 * mean(shown)
    assert 0.8 < mean(held) < 0.97


def test_utterances_that_all_models_share_widen_the_interval() -> None:
    scores = {"a": {0: 0.6, 1: 0.62}}
    alone, sharing = winner(scores, 100, 0.0), winner(scores, 100, 0.5)
    assert sharing.expected.mean == alone.expected.mean == pytest.approx(0.61)
    luck = 0.61 * 0.39 / 100
    grown = sharing.expected.deviation**2 - alone.expected.deviation**2
    assert grown == pytest.approx(0.5 * luck)
