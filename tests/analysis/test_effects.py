import itertools
import math
from pathlib import Path

import pytest
from scipy.stats import t as student_t

from experiments.analysis.effects import (
    Corner,
    describe_effects,
    draw_effects,
    effects_of,
    measure_effects,
)
from experiments.analysis.leaderboard import Row
from experiments.proposals.presets import EDITED, FOUR_EDITS, four_edits
from experiments.proposals.space import HOMEWORK
from speaker.config import HOMEWORK_BASELINE, HOMEWORK_EDITED

EDITS = ("a", "b", "c")


def corners(edits: tuple[str, ...]) -> list[Corner]:
    return [
        frozenset(made) for n in range(len(edits) + 1) for made in itertools.combinations(edits, n)
    ]


def additive(made: Corner) -> float:
    return 0.5 + 0.10 * ("a" in made) + 0.20 * ("b" in made) - 0.05 * ("c" in made)


def test_without_interactions_every_share_is_what_the_edit_adds() -> None:
    effects = measure_effects([{made: additive(made) for made in corners(EDITS)}], EDITS)
    assert [each.gain for each in effects.shares] == pytest.approx([0.10, 0.20, -0.05])
    assert [each.gain for each in effects.alone] == pytest.approx([0.10, 0.20, -0.05])
    assert [each.gain for each in effects.pairs] == pytest.approx([0, 0, 0], abs=1e-12)
    assert math.isnan(effects.total.half_width)


def test_what_two_edits_do_together_is_shared_between_them_and_named() -> None:
    values = {made: additive(made) + 0.06 * (made >= {"a", "b"}) for made in corners(EDITS)}
    effects = measure_effects([values], EDITS)
    assert [each.gain for each in effects.shares] == pytest.approx([0.13, 0.23, -0.05])
    assert effects.pairs[0].name == "a x b"
    assert [each.gain for each in effects.pairs] == pytest.approx([0.06, 0, 0], abs=1e-12)


def test_the_shares_equal_the_mean_over_all_orders_and_add_up() -> None:
    values = {made: math.sin(7 * sum(map(ord, made))) for made in corners(EDITS)}
    effects = measure_effects([values], EDITS)
    for edit, share in zip(EDITS, effects.shares, strict=True):
        gains = []
        for order in itertools.permutations(EDITS):
            before = frozenset(order[: order.index(edit)])
            gains.append(values[before | {edit}] - values[before])
        assert share.gain == pytest.approx(sum(gains) / 6)
    assert sum(each.gain for each in effects.shares) == pytest.approx(effects.total.gain)


def test_intervals_are_students_over_seeds() -> None:
    seeds = [
        {made: additive(made) * (1 + shift) for made in corners(EDITS)} for shift in (-0.1, 0, 0.2)
    ]
    share = measure_effects(seeds, EDITS).shares[1]
    gains = [0.18, 0.20, 0.24]
    center = sum(gains) / 3
    spread = math.sqrt(sum((gain - center) ** 2 for gain in gains) / 2)
    assert share.gain == pytest.approx(center)
    assert share.half_width == pytest.approx(student_t.ppf(0.95, 2) * spread / math.sqrt(3))


def rows_of(accuracy: dict[int, float], seeds: int) -> list[Row]:
    """Return rows of the preset's trials; the accuracy is by how many edits are made."""
    rows = []
    for number, preset in enumerate(four_edits(HOMEWORK, seeds)):
        made = sum(preset.values[name] == getattr(HOMEWORK_EDITED, name) for name in EDITED)
        values = {**HOMEWORK_BASELINE.to_dict(), **preset.values}
        about = (f"r{number}", str(number), "p", "complete", FOUR_EDITS, str(preset.replicate))
        rows.append(Row(*about, accuracy[made], 0.1, 1, 1.0, values))
    return rows


def test_a_studys_corners_are_found_and_incomplete_seeds_left_out(tmp_path: Path) -> None:
    rows = rows_of({0: 0.2, 1: 0.3, 2: 0.35, 3: 0.36, 4: 0.6}, seeds=2)
    assert len(rows) == 32
    effects = effects_of(rows)
    assert effects is not None
    assert effects.seeds == 2
    assert effects.total.gain == pytest.approx(0.4)
    assert [each.gain for each in effects.shares] == pytest.approx([0.1] * 4)
    text = describe_effects(effects)
    assert "all four" in text
    assert text.count("+10.0 +- 0.0") >= 4
    draw_effects(effects, tmp_path / "shares.png")
    assert (tmp_path / "shares.png").read_bytes().startswith(b"\x89PNG")
    one = effects_of(rows[:-1])
    assert one is not None
    assert one.seeds == 1
    assert "one seed" in describe_effects(one)
    assert effects_of(rows[:15]) is None


def test_the_presets_are_the_sixteen_corners_on_each_seed() -> None:
    presets = four_edits(HOMEWORK, 3)
    points = {tuple(preset.values.items()) for preset in presets}
    assert len(presets) == 48
    assert len(points) == 16
    assert {preset.replicate for preset in presets} == {0, 1, 2}
    for config in (HOMEWORK_BASELINE, HOMEWORK_EDITED):
        values = {name: getattr(config, name) for name in HOMEWORK.definition()}
        assert sum(preset.values == values for preset in presets) == 3
