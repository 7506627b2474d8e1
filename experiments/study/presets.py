"""Points that a study begins with, by name, each on one seed or on several."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.study.space import HOMEWORK, Space
from speaker.config import HOMEWORK_BASELINE, HOMEWORK_EDITED, PRESETS

EDITED = ("d_model", "nhead", "num_layers", "activation")  # what the student edited, in this order
FOUR_EDITS, FINALIST = "four-edits", "finalist"


@dataclass(frozen=True)
class Preset:
    """A point that is tried whatever the sampler says."""

    name: str
    values: dict[str, Any]  # of the fields that the space varies
    replicate: int | None = None  # which seed of the point, from 0; None: the trial's own


def homework_points(space: Space, seeds: int | None = None) -> tuple[Preset, ...]:
    """Return the homework's two points."""
    fields = [*space.choices, *space.integers, *space.log_floats]
    return tuple(
        Preset(name, {field: getattr(config, field) for field in fields}, replicate)
        for replicate in (range(seeds) if seeds else (None,))
        for name, config in PRESETS.items()
    )


def four_edits(space: Space, seeds: int | None = None) -> tuple[Preset, ...]:
    """Return every combination of the homework's first and second value of the four fields, on
    each seed: what each edit earned follows from these.
    """
    base = homework_points(space)[0].values
    pairs = [
        (getattr(HOMEWORK_BASELINE, field), getattr(HOMEWORK_EDITED, field)) for field in EDITED
    ]
    return tuple(
        Preset(FOUR_EDITS, {**base, **dict(zip(EDITED, corner, strict=True))}, replicate)
        for replicate in range(seeds or 1)
        for corner in itertools.product(*pairs)
    )


def finalists(space: Space, points: Sequence[dict[str, Any]], seeds: int) -> tuple[Preset, ...]:
    """Return points of a search on fresh seeds, all points on the first one before the second."""
    fields = list(space.distributions())
    return tuple(
        Preset(FINALIST, {name: point[name] for name in fields}, replicate)
        for replicate in range(seeds)
        for point in points
    )


SETS: dict[str, Callable[[Space, int | None], tuple[Preset, ...]]] = {
    HOMEWORK.name: homework_points,
    FOUR_EDITS: four_edits,
}
