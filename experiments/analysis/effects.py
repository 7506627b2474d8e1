"""Which of the homework's four edits earned how much.

The 16 corners between its two points give each edit's Shapley share: what it adds, averaged over
all orders in which the four could have been made (Shapley 1953). The shares add up to the whole
gain.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t as student_t

from experiments.analysis.leaderboard import Row
from experiments.proposals.presets import EDITED, FOUR_EDITS
from speaker.config import HOMEWORK_EDITED

Corner = frozenset[str]  # the edits that are made


@dataclass(frozen=True)
class Effect:
    """A mean over seeds, in accuracy, and half the width of its 90 % interval (nan of one seed)."""

    name: str
    gain: float
    half_width: float


@dataclass(frozen=True)
class Effects:
    """What the edits earned."""

    total: Effect
    shares: list[Effect]  # Shapley's, which add up to the total
    alone: list[Effect]  # each edit made alone, from the first point
    pairs: list[Effect]  # what two edits do together beyond what each does, averaged over the rest
    seeds: int


def effects_of(rows: list[Row]) -> Effects | None:
    """Return what the edits earned by a study of `--preset four-edits`, from the seeds of which
    all 16 corners are complete; None if there is none.
    """
    seeds: dict[str, dict[Corner, float]] = {}
    for row in rows:
        if row.preset == FOUR_EDITS and row.state == "complete" and row.whole is not None:
            made = frozenset(
                name for name in EDITED if row.values[name] == getattr(HOMEWORK_EDITED, name)
            )
            seeds.setdefault(row.replicate, {})[made] = row.whole
    whole = [corners for _, corners in sorted(seeds.items()) if len(corners) == 2 ** len(EDITED)]
    return measure_effects(whole, EDITED) if whole else None


def measure_effects(values: Sequence[Mapping[Corner, float]], edits: tuple[str, ...]) -> Effects:
    """Return the effects of edits from the accuracy of every corner, one mapping a seed."""
    whole, none = frozenset(edits), frozenset[str]()

    def effect(name: str, one_seed: list[float]) -> Effect:
        return Effect(name, mean(one_seed), _half_width(one_seed))

    return Effects(
        total=effect("all", [value[whole] - value[none] for value in values]),
        shares=[effect(edit, [_shapley(value, edit, edits) for value in values]) for edit in edits],
        alone=[
            effect(edit, [value[frozenset({edit})] - value[none] for value in values])
            for edit in edits
        ],
        pairs=[
            effect(f"{one} x {other}", [_interaction(value, one, other, edits) for value in values])
            for one, other in itertools.combinations(edits, 2)
        ],
        seeds=len(values),
    )


def _shapley(value: Mapping[Corner, float], edit: str, edits: tuple[str, ...]) -> float:
    others = [each for each in edits if each != edit]
    share = 0.0
    for size in range(len(others) + 1):
        weight = 1 / (len(edits) * math.comb(len(others), size))
        for made in map(frozenset, itertools.combinations(others, size)):
            share += weight * (value[made | {edit}] - value[made])
    return share


def _interaction(
    value: Mapping[Corner, float], one: str, other: str, edits: tuple[str, ...]
) -> float:
    """Return the mean over the other edits of f(both) - f(one) - f(other) + f(neither)."""
    rest = [each for each in edits if each not in (one, other)]
    corners = [
        frozenset(made)
        for size in range(len(rest) + 1)
        for made in itertools.combinations(rest, size)
    ]
    return mean(
        value[made | {one, other}] - value[made | {one}] - value[made | {other}] + value[made]
        for made in corners
    )


def _half_width(values: list[float]) -> float:
    if len(values) < 2:
        return math.nan
    return float(student_t.ppf(0.95, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def describe_effects(effects: Effects) -> str:
    """Return a table of points of accuracy, with intervals over seeds where there are several."""

    def cell(effect: Effect) -> str:
        width = "" if math.isnan(effect.half_width) else f" +- {100 * effect.half_width:.1f}"
        return f"{100 * effect.gain:+6.1f}{width}"

    seeds = "one seed" if effects.seeds == 1 else f"{effects.seeds} seeds, 90 % intervals"
    lines = [
        f"What each edit earned, in points of accuracy on whole utterances ({seeds}):",
        f"{'edit':<12} {'share':<16} {'made alone'}",
    ]
    for share, alone in zip(effects.shares, effects.alone, strict=True):
        lines.append(f"{share.name:<12} {cell(share):<16} {cell(alone)}")
    lines.append(f"{'all four':<12} {cell(effects.total)}")
    pairs = sorted(effects.pairs, key=lambda effect: -abs(effect.gain))[:3]
    lines.append("Strongest pairs beyond the sum: " + "; ".join(
        f"{pair.name} {cell(pair).strip()}" for pair in pairs))  # fmt: skip
    return "\n".join(lines)


def draw_effects(effects: Effects, path: Path) -> None:
    """Draw the shares with their intervals, from the first point's accuracy to the last's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    names = [effect.name for effect in effects.shares]
    gains = [100 * effect.gain for effect in effects.shares]
    widths = [100 * effect.half_width for effect in effects.shares]
    axes.barh(names, gains, xerr=None if math.isnan(widths[0]) else widths, color="0.6")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set(xlabel=f"points of accuracy; together {100 * effects.total.gain:+.1f}")
    figure.savefig(path, dpi=150)
