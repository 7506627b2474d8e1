"""Points that a study begins with, by name, each on one seed or on several."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.proposals.space import HOMEWORK, REPRODUCE, Space
from speaker.common.errors import UserError
from speaker.config import HOMEWORK_BASELINE, HOMEWORK_EDITED, PRESETS, TrialConfig

EDITED = ("d_model", "nhead", "num_layers", "activation")  # what the student edited, in this order
FOUR_EDITS = "four-edits"
REPRODUCED: dict[str, tuple[dict[str, Any], float]] = {
    "published-sample": ({}, 0.857),
    "published-two-layers": ({"num_layers": 2}, 0.897),
    "published-post-norm": ({"d_model": 256, "num_layers": 3}, 0.521),
    "published-post-norm-slow": ({"d_model": 256, "num_layers": 3, "lr": 3e-4}, 0.95),
    "published-pre-norm": ({"d_model": 256, "num_layers": 3, "norm_first": True}, 0.951),
}
"""What is published of models of this family: what differs from the homework's first point, and the
accuracy on whole utterances, on the homework's corpus after 70,000 steps. One source, one seed
each; where it names no heads and no activation the first point's are taken.
"""


@dataclass(frozen=True)
class Preset:
    """A point that is tried whatever the sampler says."""

    name: str
    values: dict[str, Any]  # of the fields that the space varies
    replicate: int | None = None  # which seed of the point, from 0; None: the trial's own


def homework_points(
    space: Space,
    seeds: int | None = None,
    fixed: Mapping[str, Any] | None = None,
    base: TrialConfig = HOMEWORK_BASELINE,
) -> tuple[Preset, ...]:
    """Return the homework's two points, as far as they lie in the space and have the fixed values
    of what the student edited; all else is the base's.
    """
    fields = list(space.distributions())
    held = [
        (name, {field: getattr(config if field in EDITED else base, field) for field in fields})
        for name, config in PRESETS.items()
        if all(
            getattr(config, field) == value
            for field, value in (fixed or {}).items()
            if field in EDITED
        )
    ]
    return tuple(
        Preset(name, values, replicate)
        for replicate in (range(seeds) if seeds else (None,))
        for name, values in held
        if space.holds(values)
    )


def four_edits(
    space: Space, seeds: int, base: TrialConfig = HOMEWORK_BASELINE
) -> tuple[Preset, ...]:
    """Return every combination of the homework's first and second value of the four fields, on
    each seed: what each edit earned follows from these.

    Raises UserError for a space that lacks some of them.
    """
    varied = list(space.distributions())
    if set(EDITED) - set(varied):
        raise UserError("--preset four-edits needs a space that varies all four; leave out --fix")
    rest = {name: getattr(base, name) for name in varied if name not in EDITED}
    pairs = [(getattr(HOMEWORK_BASELINE, name), getattr(HOMEWORK_EDITED, name)) for name in EDITED]
    corners = [
        {**rest, **dict(zip(EDITED, corner, strict=True))} for corner in itertools.product(*pairs)
    ]
    if not all(map(space.holds, corners)):
        raise UserError("--preset four-edits needs both values of all four; leave out --choices")
    return tuple(
        Preset(FOUR_EDITS, corner, replicate) for replicate in range(seeds) for corner in corners
    )


def reproduce(space: Space, seeds: int, base: TrialConfig) -> tuple[Preset, ...]:  # noqa: ARG001  # as the others
    """Return the published points on each seed."""
    sample = {name: getattr(HOMEWORK_BASELINE, name) for name in space.distributions()}
    return tuple(
        Preset(name, {**sample, **changes}, replicate)
        for replicate in range(seeds)
        for name, (changes, _published) in REPRODUCED.items()
    )


SETS: dict[str, Callable[[Space, int, TrialConfig], tuple[Preset, ...]]] = {
    HOMEWORK.name: lambda space, seeds, base: homework_points(space, seeds, base=base),
    FOUR_EDITS: four_edits,
    REPRODUCE.name: reproduce,
}
