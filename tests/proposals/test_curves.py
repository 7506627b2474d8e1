import math
import random
from statistics import mean

import pytest
import torch

from experiments.proposals.curves import Curve, Estimate, estimate, places_of

UTTERANCES = 100
LUCK = math.sqrt(0.5 * 0.5 / UTTERANCES)


def draw_study(
    seed: int, trials: int = 30, stopped: bool = True
) -> tuple[list[Curve], list[float]]:
    """Return the curves of invented trials, two of three of them stopped early, and what each is
    worth: points differ smoothly, seeds by 0.02, and the validation part flatters or hurts each.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal() -> float:
        return float(torch.randn((), generator=draw))

    curves, worths = [], []
    for number in range(trials):
        x, y = torch.rand(2, generator=draw).tolist()
        worth = 0.45 + 0.15 * math.sin(3 * x) - 0.4 * (y - 0.5) ** 2 + 0.02 * normal()
        luck = LUCK * normal()
        last = 5 if number % 3 == 0 or not stopped else 1 + number % 3
        values = [
            (part / 5, worth * (1 - math.exp(-part)) + luck + 0.01 * normal())
            for part in range(1, last + 1)
        ]
        curves.append(Curve((x, y), tuple(values)))
        worths.append(worth * (1 - math.exp(-5)))
    return curves, worths


def complete(curves: list[Curve]) -> list[int]:
    return [number for number, curve in enumerate(curves) if curve.values[-1][0] == 1]


def test_the_best_shown_number_flatters_and_the_estimate_does_not() -> None:
    """On average over studies, and the winner by the estimate is worth no less."""
    shown, expected, by_shown, by_model = [], [], [], []
    for seed in range(12):
        curves, worths = draw_study(seed)
        found = estimate(curves, UTTERANCES)
        ended = complete(curves)
        highest = max(ended, key=lambda number: curves[number].values[-1][1])
        winner = max(ended, key=lambda number: found[number].mean)
        shown.append(curves[highest].values[-1][1] - worths[highest])
        expected.append(found[winner].mean - worths[winner])
        by_shown.append(worths[highest])
        by_model.append(worths[winner])
    assert mean(shown) > 0.04
    assert abs(mean(expected)) < 0.02
    assert mean(by_model) > mean(by_shown) - 0.005


def test_the_interval_holds_the_truth_nine_times_in_ten() -> None:
    held = []
    for seed in range(12):
        curves, worths = draw_study(seed)
        found = estimate(curves, UTTERANCES)
        for number in complete(curves):
            low, high = found[number].interval()
            held.append(low <= worths[number] <= high)
    assert 0.8 < mean(held) < 1.0


def test_what_all_models_share_widens_the_interval_and_keeps_the_order() -> None:
    curves, _ = draw_study(0)
    alone, agreeing = estimate(curves, UTTERANCES), estimate(curves, UTTERANCES, 0.5)
    for one, other in zip(alone, agreeing, strict=True):
        assert other.deviation**2 > one.deviation**2 - 1e-6
        assert other.deviation >= math.sqrt(0.5) * LUCK * 0.9
    ended = complete(curves)
    best = max(ended, key=lambda number: alone[number].mean)
    highest = max(agreeing[number].mean for number in ended)
    assert agreeing[best].mean == pytest.approx(highest, abs=0.03)


@pytest.mark.parametrize("trials", [1, 2])
def test_few_trials_get_an_estimate_near_what_they_showed(trials: int) -> None:
    curves, _ = draw_study(3, trials, stopped=False)
    for curve, each in zip(curves, estimate(curves, UTTERANCES), strict=True):
        assert abs(each.mean - curve.values[-1][1]) < 0.2
        assert 0 < each.deviation < 0.3


def test_points_without_a_difference_are_one_place() -> None:
    curves = [Curve((), ((1.0, value),)) for value in (0.4, 0.5, 0.6)]
    means = [each.mean for each in estimate(curves, UTTERANCES)]
    assert 0.4 < means[0] < means[1] < means[2] < 0.6


def test_an_interval_is_nine_in_ten_of_a_normal_distribution() -> None:
    low, high = Estimate(0.5, 0.1).interval()
    assert (low, high) == pytest.approx((0.3355, 0.6645))


def test_many_values_are_thinned_to_the_last_of_each_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    curves, _ = draw_study(1)
    whole = estimate(curves, UTTERANCES)
    monkeypatch.setattr("experiments.proposals.curves.MAX_ROWS", 40)
    thinned = estimate(curves, UTTERANCES)
    assert [each.mean for each in whole] != [each.mean for each in thinned]
    assert all(abs(a.mean - b.mean) < 0.15 for a, b in zip(whole, thinned, strict=True))


@pytest.mark.parametrize("seed", range(24))
def test_curves_without_sense_get_finite_estimates(seed: int) -> None:
    """All alike, all wrong, all right, few, many at one place: no study may end in a traceback."""
    draw = random.Random(seed)  # noqa: S311  # cases, not secrets
    places = [0.0, 0.5, 1.0]
    curves = [
        Curve(
            tuple(draw.choice(places) for _ in range(3)),
            tuple(
                (part / 5, draw.choice([0.0, 0.05, 1.0, draw.random()]) if seed % 2 else 0.05)
                for part in range(1, draw.choice([1, 2, 5]) + 1)
            ),
        )
        for _ in range(draw.choice([1, 2, 3, 10, 30]))
    ]
    for each in estimate(curves, draw.choice([3, 100, 5_667]), draw.choice([0.0, 0.5, 1.0])):
        assert math.isfinite(each.mean)
        assert math.isfinite(each.deviation)


def test_places_are_scaled_by_what_the_points_span() -> None:
    points: list[dict[str, object]] = [
        {"d_model": 80, "num_layers": 1, "activation": "relu", "lr": 1e-3, "seed": 1},
        {"d_model": 512, "num_layers": 3, "activation": "gelu", "lr": 1e-3, "seed": 2},
        {"d_model": 202.38, "num_layers": 2, "activation": "relu", "lr": 1e-3, "seed": 3},
    ]
    found = places_of(points)
    assert found[0] == (0, 0, 0, 1)
    assert found[1] == (1, 1, 1, 0)
    assert found[2] == pytest.approx((0.5, 0.5, 0, 1), abs=1e-3)
    assert places_of(points[:1]) == [()]
    older = {name: value for name, value in points[1].items() if name != "activation"}
    assert places_of([points[0], older]) == [(0, 0), (1, 1)]
