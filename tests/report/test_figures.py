"""Figures are tested by what they show: the data behind their marks and their words."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.analysis.breakdown import Part
from experiments.analysis.effects import Effect, Effects
from experiments.analysis.leaderboard import Row
from experiments.proposals.curves import Estimate
from experiments.report import figures
from experiments.report.svg import (
    BAD,
    DOT,
    HOMEWORK,
    VARIABLES,
    WIN,
    canvas,
    draw_dots,
    short,
    to_svg,
)
from tests.report.rows import ended, mixed, numbers, trial


def xs(line: Line2D) -> list[float]:
    return np.asarray(line.get_xdata(), dtype=float).tolist()


def ys(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata(), dtype=float).tolist()


def marks(axes: Axes) -> Iterator[tuple[str, str, float, float]]:
    """Yield all marks that are drawn: kind, colour and place."""
    for line in axes.lines:
        if line.get_marker() not in ("None", None, ""):
            for x, y in zip(xs(line), ys(line), strict=True):
                yield str(line.get_marker()), to_hex(line.get_color()), float(x), float(y)
    for patch in axes.patches:
        for x, y in np.asarray(patch.get_path().vertices)[::2]:
            yield "o", to_hex(patch.get_edgecolor()), float(x), float(y)


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_history_tells_ends_apart() -> None:
    figure = figures.draw_history(mixed())
    (axes,) = figure.axes
    drawn = set(marks(axes))
    assert {("o", WIN, 3, 0.8), ("o", HOMEWORK, 0, 0.5), ("o", DOT, 2, 0.78)} <= drawn
    assert {("x", DOT, 1, 0.45), ("v", BAD, 5, 0.1)} <= drawn
    assert {mark for mark, _, _, y in drawn if y == 0.02} == {"s", "P"}, "no score: at the foot"
    assert {"complete", "stopped early", "collapsed", "cannot be trained", "failed", "winner",
            "given points", "best so far"} == set(labels(figure))  # fmt: skip
    assert "collapsed" not in labels(figures.draw_history(mixed()[:5]))


def test_best_so_far_rises_in_the_order_of_the_trials() -> None:
    assert figures.best_so_far(mixed()) == ([0, 2, 3, 7], [0.5, 0.78, 0.8, 0.8])
    assert figures.best_so_far([ended(0, "pruned", 0.9)]) == ([], [])


def test_the_best_are_drawn_with_their_intervals() -> None:
    rows = mixed()[:4]
    (axes,) = figures.draw_best(rows).axes
    low, high = rows[0].expected.interval()  # type: ignore[union-attr]
    spans = [tuple(xs(line)) for line in axes.lines if len(xs(line)) == 2]
    assert spans[0] == (low, high)
    assert len(spans) == 4
    assert ("o", WIN, 0.78, 0) in set(marks(axes)), "what is expected"
    assert ("|", WIN, 0.8, 0) in set(marks(axes)), "what it scored"
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[0] == "#3 d256 h2 L1 relu"
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the best on top"


def test_intervals_stay_among_accuracies() -> None:
    row = trial(0, 1.0, expected=Estimate(0.99, 0.1))
    (axes,) = figures.draw_best([row]).axes
    assert xs(axes.lines[0]) == pytest.approx([0.99 - 0.1645, 1.0])


def test_a_parameters_values_are_dots_and_medians() -> None:
    (axes,) = figures.draw_parameter(mixed(), "activation").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["sigmoid", "relu", "gelu"]
    dots = [(round(x), y) for _, _, x, y in marks(axes)]
    assert sorted(dots) == [(0, 0.5), (1, 0.78), (1, 0.8), (2, 0.6)], "complete trials alone"
    medians = [ys(line)[0] for line in axes.lines]
    assert medians == pytest.approx([0.5, 0.79, 0.6])


def test_dots_of_a_value_do_not_hide_each_other() -> None:
    (axes,) = figures.draw_parameter([trial(n, 0.5) for n in range(30)], "nhead").axes
    across = np.sort([x for _, _, x, _ in marks(axes)])
    assert np.diff(across).min() > 0.003
    assert across.min() > -0.34
    assert across.max() < 0.34


def test_many_values_have_an_axis_by_factors() -> None:
    rows = [trial(n, 0.5 + n / 100, values={"lr": 1e-5 * 2.0**n}) for n in range(12)]
    (axes,) = figures.draw_parameter(rows, "lr").axes
    assert axes.get_xscale() == "log"
    assert {x for _, _, x, _ in marks(axes)} == {row.values["lr"] for row in rows}
    near = [replace(row, values={"lr": 1 + n / 100}) for n, row in enumerate(rows)]
    assert figures.draw_parameter(near, "lr").axes[0].get_xscale() == "linear"


def test_the_front_is_what_no_cheaper_one_equals() -> None:
    rows = [
        trial(0, 0.5, parameters=10),
        trial(1, 0.5, parameters=20),
        trial(2, 0.7, parameters=20),
        trial(3, 0.6, parameters=30),
        trial(4, 0.9, parameters=40),
        ended(5, "pruned", 0.99, parameters=1),
    ]
    assert numbers(figures.front(rows, "parameters")) == ["0", "2", "4"]
    (axes,) = figures.draw_cost(rows, "parameters").axes
    assert list(xs(axes.lines[0])) == [10, 20, 40]
    assert {x for _, _, x, _ in marks(axes)} == {10, 20, 30, 40}


def test_curves_are_drawn_whole_the_winner_on_top() -> None:
    (axes,) = figures.draw_curves(mixed()).axes
    drawn = {to_hex(line.get_color()): line for line in axes.lines if len(xs(line)) == 2}
    assert tuple(ys(drawn[WIN])) == (0.4, 0.8)
    assert drawn[WIN].get_zorder() > drawn[HOMEWORK].get_zorder() > drawn[DOT].get_zorder()
    dotted = [line for line in axes.lines if line.get_linestyle() == ":" and len(xs(line))]
    assert len(dotted) == 2, "one that was stopped and one that collapsed"


def test_too_many_curves_leave_the_best_and_the_given_ones() -> None:
    rows = [trial(n, 0.9 - n / 1000) for n in range(figures.MAX_CURVES + 20)]
    rows.append(trial(999, 0.1, preset="homework-baseline"))
    drawn = figures.curves_of(rows)
    assert len(drawn) == figures.MAX_CURVES + 1
    assert numbers(drawn)[0] == "0"
    assert numbers(drawn)[-1] == "999"


@pytest.mark.parametrize("half_width", [0.01, float("nan")])
def test_edits_are_bars_with_intervals_where_there_are_seeds(half_width: float) -> None:
    shares = [Effect(name, gain, half_width) for name, gain in (("d_model", 0.1), ("nhead", -0.02))]
    seeds = 1 if np.isnan(half_width) else 3
    effects = Effects(Effect("all", 0.08, half_width), shares, [], [], seeds)
    (axes,) = figures.draw_effects(effects).axes
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths == pytest.approx([10, -2, 8])
    assert bool(axes.collections) == (seeds > 1)


@pytest.mark.parametrize(
    "draw",
    [
        figures.draw_best,
        figures.draw_history,
        figures.draw_curves,
        lambda rows: figures.draw_cost(rows, "seconds"),
        lambda rows: figures.draw_parameter(rows, "d_model"),
    ],
)
def test_an_svg_is_well_formed_and_in_the_pages_colours(
    draw: Callable[[list[Row]], Figure],
) -> None:
    rows = [*mixed()[:4], trial(8, 0.3, point="<b>$x$ & $y_{")]
    text = to_svg(draw(rows), "name", 'says "<so>"')
    tree = ElementTree.fromstring(text.replace("href", "link"))  # noqa: S314  # our own
    assert tree.get("aria-label") == 'says "<so>"'
    assert "http" not in text
    assert not any(colour in text for colour in VARIABLES)
    assert "var(--win)" in text
    assert "\n" not in text
    assert to_svg(draw(rows), "name", 'says "<so>"') == text


def test_a_dot_takes_few_bytes() -> None:
    few, many = ([trial(n, 0.5 + n / 4000) for n in range(count)] for count in (100, 1100))
    sizes = [len(to_svg(figures.draw_cost(rows, "seconds"), "c", "")) for rows in (few, many)]
    assert sizes[1] - sizes[0] < 20 * 1000 + 20 * 1000  # dots, and the line of the front


@pytest.mark.parametrize(
    ("value", "shown"), [(3e5, "300k"), (1e6, "1M"), (10, "10"), (3e-4, "0.0003"), (2e9, "2G")]
)
def test_numbers_at_an_axis_are_short(value: float, shown: str) -> None:
    assert short(value) == shown


def test_lines_cross_the_values_of_each_field_to_the_accuracy() -> None:
    figure = figures.draw_parallel(mixed(), ["d_model", "activation"])
    (axes,) = figure.axes
    lines = {to_hex(line.get_color()): ys(line) for line in axes.lines if len(xs(line)) == 3}
    assert lines[WIN] == [1.0, 0.5, 1.0], "256 of 80, 128, 256; relu of sigmoid, relu, gelu; best"
    assert lines[HOMEWORK] == [0.0, 0.0, 0.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "d_model", "activation", "accuracy"
    ]  # fmt: skip
    shown = {(text.get_text(), text.xy) for text in axes.texts}  # type: ignore[attr-defined]
    assert {("80", (0, 0.0)), ("128", (0, 0.5)), ("gelu", (1, 1.0)), ("0.8", (2, 1.0))} <= shown


def test_many_numbers_share_an_axis_by_their_size() -> None:
    rows = [trial(n, 0.5 + n / 100, values={"lr": 10**-n}) for n in range(12)]
    (axes,) = figures.draw_parallel(rows[::-1], ["lr"]).axes
    places = sorted(ys(line)[0] for line in axes.lines if xs(line) == [0, 1])
    assert np.allclose(np.diff(places), 1 / 11), "by factors"
    assert {text.get_text() for text in axes.texts} == {"1e-11", "1", "0.5", "0.61"}


def test_lengths_are_drawn_with_their_intervals() -> None:
    parts = [Part("10 to 20", 5, 10), Part("21 to 40", 8, 10)]
    (axes,) = figures.draw_lengths(parts).axes
    assert [(x, y) for _, _, x, y in marks(axes)] == [(0, 0.5), (1, 0.8)]
    assert tuple(ys(axes.lines[1])) == parts[1].interval()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10 to 20", "21 to 40"]


@pytest.mark.parametrize("count", [1, 60, 1_000])
def test_each_dot_is_in_the_page(count: int) -> None:
    figure, axes = canvas(4.0, 3.0)
    draw_dots(axes, [n % 37 for n in range(count)], [n // 37 for n in range(count)])
    (path,) = re.findall(r'<path d="([^"]*h0[^"]*)"', to_svg(figure, "dots", "dots"))
    assert path.count("h0") == count


def test_a_single_evaluation_is_no_curve() -> None:
    rows = [ended(0, "pruned", 0.3, curve=((0.2, 0.3),)), trial(1)]
    assert numbers(figures.curves_of(rows)) == ["1"]
