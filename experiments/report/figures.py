"""The figures of a study's page: each shows rows, and nothing that is not in them."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.analysis.breakdown import Part
from experiments.analysis.effects import Effects
from experiments.analysis.leaderboard import Row
from experiments.proposals.presets import EDITED, FOUR_EDITS
from experiments.report.levels import are_many, groups, in_order, is_continuous, scored, shown
from experiments.report.svg import (
    BAD,
    DOT,
    HOMEWORK,
    INK,
    SOFT,
    WIN,
    add_legend,
    canvas,
    draw_dots,
    set_log,
)
from speaker.config import PRESETS

WIDTH, HEIGHT = 5.0, 3.0  # inches
PANEL = 3.9  # of the small ones, which stand beside each other
MAX_CURVES = 120  # more are grey on grey, and a page of half a megabyte
MAX_NAME = 26  # characters of a point beside a figure
SPREAD = 0.22  # of a value's dots, to each side
MARKS = {  # of the ends that are not complete
    "pruned": ("x", DOT, "stopped early"),
    "collapsed": ("v", BAD, "collapsed"),
    "infeasible": ("s", BAD, "cannot be trained"),
    "failed": ("P", BAD, "failed"),
}
COSTS = {  # of a row, by attribute
    "parameters": "parameters",
    "seconds": "seconds of training",
    "prediction_ms": "milliseconds of prediction an utterance",
}


def score(row: Row) -> float | None:
    """Return a row's accuracy: its best, or where it never got there the best of its curve."""
    if row.whole is not None:
        return row.whole
    return max((value for _, value in row.curve), default=None)


def is_homework(row: Row) -> bool:
    """Tell whether a row is one of the points that stand for the homework; of the corners between
    its two points, those two are.
    """
    if row.preset != FOUR_EDITS:
        return bool(row.preset)
    return any(
        all(row.values.get(name) == getattr(point, name) for name in EDITED)
        for point in PRESETS.values()
    )


def draw_best(rows: Sequence[Row]) -> Figure:
    """Draw what is expected of rows, with intervals, and what they scored, in their order."""
    figure, axes = canvas(WIDTH, 0.9 + 0.23 * len(rows))
    for place, row in enumerate(rows):
        colour = _colour(row, rows[0])
        if row.expected:
            low, high = row.expected.interval()
            ends = [max(0.0, low), min(1.0, high)]
            axes.plot(ends, [place, place], color=colour, linewidth=2, alpha=0.6)
            axes.plot([row.expected.mean], [place], "o", color=colour, markersize=5)
        if row.whole is not None:
            axes.plot([row.whole], [place], "|", color=colour, markersize=10, markeredgewidth=1.5)
    axes.set_yticks(range(len(rows)), [_named(row) for row in rows])
    axes.tick_params(axis="y", labelsize=9, labelcolor=INK)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("accuracy, whole utterances")
    axes.plot([], [], "o-", color=DOT, label="expected, 90 % interval")
    axes.plot([], [], "|", color=DOT, markersize=10, label="on the validation utterances")
    add_legend(figure)
    return figure


def draw_history(rows: Sequence[Row]) -> Figure:
    """Draw every trial in order, and the best so far; those without a score stand at the foot."""
    figure, axes = canvas(WIDTH, HEIGHT)
    ordered = sorted(rows, key=lambda row: int(row.trial))
    complete = scored(ordered)
    draw_dots(axes, *_scores(complete))
    axes.plot([], [], "o", color=DOT, label="complete")
    for state, (mark, colour, label) in MARKS.items():
        mine = [row for row in ordered if row.state == state]
        if mine:
            axes.plot(*_scores(mine), mark, color=colour, markersize=5, label=label)
            lost = [int(row.trial) for row in mine if score(row) is None]
            axes.plot(lost, [0.02] * len(lost), mark, color=colour, markersize=5,
                      transform=axes.get_xaxis_transform())  # fmt: skip
    for which, colour, label in (
        ([row for row in complete if is_homework(row)], HOMEWORK, "given points"),
        (scored(rows)[:1], WIN, "winner"),
    ):
        if which:
            axes.plot(*_scores(which), "o", color=colour, markersize=6, label=label)
    if complete:
        axes.step(*best_so_far(complete), where="post", color=WIN, alpha=0.7, label="best so far")
    axes.set(xlabel="trial, in the order of its start", ylabel="accuracy, whole utterances")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(-0.5 - len(rows) / 50, len(rows) * 1.02 - 0.5)
    add_legend(figure)
    return figure


def best_so_far(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    """Return the numbers of the trials that were better than all before, and what they scored; the
    last trial ends the line.
    """
    numbers: list[int] = []
    values: list[float] = []
    for row in sorted(scored(rows), key=lambda row: int(row.trial)):
        if row.whole is not None and (not values or row.whole > values[-1]):
            numbers.append(int(row.trial))
            values.append(row.whole)
    last = max((int(row.trial) for row in rows), default=0)
    return ([*numbers, last], [*values, values[-1]]) if values else ([], [])


def draw_parameter(rows: Sequence[Row], name: str) -> Figure:
    """Draw the complete rows by the value of a field: a dot a trial, a bar at each median."""
    rows = scored(rows)
    figure, axes = canvas(PANEL, 2.4)
    if is_continuous(name, rows):
        places = {row.run_id: float(row.values[name]) for row in rows if name in row.values}
        low, high = min(places.values()), max(places.values())
        if low > 0 and high > 20 * low:
            set_log(axes)
    else:
        levels = groups(name, rows)
        places = {
            row.run_id: level + _aside(number)
            for level, (_, members) in enumerate(levels)
            for number, row in enumerate(members)
        }
        axes.set_xticks(range(len(levels)), [plain(label) for label, _ in levels])
        axes.set_xlim(-0.6, len(levels) - 0.4)
        axes.grid(visible=False, axis="x")
        for level, (_, members) in enumerate(levels):
            middle = [median([row.whole or 0.0 for row in members])] * 2
            axes.plot([level - 0.34, level + 0.34], middle, color=INK, linewidth=1.8)
    here = [row for row in rows if row.run_id in places]
    for colour in (DOT, HOMEWORK, WIN):
        mine = [row for row in here if _colour(row, rows[0]) == colour]
        draw_dots(axes, [places[row.run_id] for row in mine], [row.whole or 0 for row in mine],
                  colour)  # fmt: skip
    return figure


def median(values: Sequence[float]) -> float:
    """Return the middle of values, at least one."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def draw_parallel(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """Draw the best complete rows as lines across their fields' values to their accuracy: the
    better, the darker; the given points and the winner on top.
    """
    rows = [row for row in scored(rows)[:MAX_CURVES] if all(name in row.values for name in names)]
    figure, axes = canvas(WIDTH, HEIGHT)
    axes.grid(visible=False)
    axes.set(xticks=range(len(names) + 1), yticks=[], xlim=(-0.3, len(names) + 0.5))
    axes.set_xticklabels([*names, "accuracy"], rotation=20, ha="right")
    axes.spines[["left", "bottom"]].set_visible(False)
    columns = [_places([row.values[name] for row in rows], name) for name in names]
    columns.append(_places([round(row.whole or 0, 3) for row in rows], "accuracy"))
    for across, (_, ticks) in enumerate(columns):
        axes.axvline(across, color=SOFT, linewidth=0.8)
        for label, up in ticks.items():
            axes.annotate(label, (across, up), (3, 2), textcoords="offset points", color=SOFT,
                          fontsize=8, verticalalignment="bottom")  # fmt: skip
    for place, row in reversed(list(enumerate(rows))):
        colour, share = _colour(row, rows[0]), 1 - place / len(rows)
        axes.plot([column[place] for column, _ in columns], color=colour,
                  linewidth=1 if colour == DOT else 2,
                  alpha=0.1 + 0.7 * share**2 if colour == DOT else 1,
                  zorder=2 + (colour != DOT) + (colour == WIN))  # fmt: skip
    for colour, label in ((WIN, "winner"), (HOMEWORK, "given points"), (DOT, "others")):
        axes.plot([], [], color=colour, label=label)
    add_legend(figure)
    return figure


def _places(values: Sequence[Any], name: str) -> tuple[list[float], dict[str, float]]:
    """Return where values stand on an axis of their own, in [0, 1], and its labels: each value
    where there are few, else the least and the greatest.
    """
    if are_many(values):
        low, high = min(values), max(values)
        scale = math.log if low > 0 and high > 20 * low else float
        span = scale(high) - scale(low)
        places = [(scale(value) - scale(low)) / span for value in values]
        return places, {shown(low): 0.0, shown(high): 1.0}
    ordered = in_order(name, values)
    where = {value: place / max(1, len(ordered) - 1) for place, value in enumerate(ordered)}
    return [where[value] for value in values], {shown(value): up for value, up in where.items()}


def draw_lengths(parts: Sequence[Part]) -> Figure:
    """Draw the accuracy of utterances of like length, with its interval."""
    figure, axes = canvas(WIDTH, 2.4)
    for place, part in enumerate(parts):
        axes.plot([place, place], part.interval(), color=DOT, linewidth=2)
    axes.plot(range(len(parts)), [part.accuracy for part in parts], "o", color=WIN, markersize=6)
    axes.set_xticks(range(len(parts)), [part.name for part in parts])
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="frames of an utterance (100 a second)", ylabel="accuracy",
             xlim=(-0.5, len(parts) - 0.5))  # fmt: skip
    return figure


def draw_effects(effects: Effects) -> Figure:
    """Draw what each of the four edits earned, with intervals where there are several seeds."""
    figure, axes = canvas(WIDTH, 2.2)
    bars = [*effects.shares, effects.total]
    widths = [100 * each.half_width for each in bars]
    axes.barh(
        [each.name for each in bars],
        [100 * each.gain for each in bars],
        xerr=widths if effects.seeds > 1 else None,
        color=[DOT] * len(effects.shares) + [WIN],
        ecolor=SOFT,
    )
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlabel("points of accuracy")
    return figure


def draw_cost(rows: Sequence[Row], cost: str) -> Figure:
    """Draw accuracy against a cost, with the front: nothing is both better and cheaper."""
    rows = [row for row in scored(rows) if getattr(row, cost) > 0]
    figure, axes = canvas(PANEL, 2.9)
    set_log(axes)
    edge = front(rows, cost)
    axes.step([getattr(row, cost) for row in edge], [row.whole or 0 for row in edge],
              where="post", color=WIN, alpha=0.7)  # fmt: skip
    for colour in (DOT, HOMEWORK, WIN):
        mine = [row for row in rows if _colour(row, rows[0]) == colour]
        draw_dots(axes, [getattr(row, cost) for row in mine], [row.whole or 0 for row in mine],
                  colour)  # fmt: skip
    axes.set(xlabel=f"{COSTS[cost]}, log scale", ylabel="accuracy")
    return figure


def front(rows: Sequence[Row], cost: str) -> list[Row]:
    """Return the complete rows that no cheaper one equals, cheapest first."""
    kept: list[Row] = []
    for row in sorted(scored(rows), key=lambda row: (getattr(row, cost), -(row.whole or 0))):
        if not kept or (row.whole or 0) > (kept[-1].whole or 0):
            kept.append(row)
    return kept


def draw_curves(rows: Sequence[Row]) -> Figure:
    """Draw how accuracy grew, of the best rows of those that have a curve; the winner and the given
    points on top.
    """
    figure, axes = canvas(WIDTH, HEIGHT)
    complete = scored(rows)
    winner = complete[0] if complete else None
    for row in reversed(curves_of(rows)):
        colour = _colour(row, winner)
        line = axes.plot(*zip(*row.curve, strict=True), color=colour)[0]
        line.set(linewidth=1, alpha=0.45, linestyle="-" if row.state == "complete" else ":")
        if colour != DOT:
            line.set(linewidth=2, alpha=1, zorder=3 + (colour == WIN))
    for colour, label in ((WIN, "winner"), (HOMEWORK, "given points"), (DOT, "others")):
        axes.plot([], [], color=colour, label=label)
    axes.plot([], [], ":", color=DOT, label="not complete")
    axes.set(xlabel="share of the budget", ylabel="accuracy, whole utterances", xlim=(0, 1))
    add_legend(figure)
    return figure


def curves_of(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of which curves are drawn: the best of those that have one, and all given
    points.
    """
    drawn = [row for row in rows if len(row.curve) > 1]
    return drawn[:MAX_CURVES] + [row for row in drawn[MAX_CURVES:] if is_homework(row)][:20]


def _colour(row: Row, winner: Row | None) -> str:
    if winner and row.run_id == winner.run_id:
        return WIN
    return HOMEWORK if is_homework(row) else DOT


def _named(row: Row) -> str:
    point = row.point if len(row.point) <= MAX_NAME else f"{row.point[: MAX_NAME - 3]}..."
    return f"#{row.trial} {plain(point)}"


def plain(text: str) -> str:
    """Return a text that matplotlib takes for no formula."""
    return text.replace("$", "")


def _aside(number: int) -> float:
    """Return how far a dot stands beside its value, so that dots do not hide each other: the steps
    of the golden section, which are never close to one another.
    """
    return SPREAD * (2 * (0.5 + number * 0.618034) % 2 - 1)


def _scores(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    """Return the numbers and accuracies of those that have one."""
    pairs = [(int(row.trial), value) for row in rows if (value := score(row)) is not None]
    return [number for number, _ in pairs], [value for _, value in pairs]
