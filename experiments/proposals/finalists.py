"""The finalists of a search: its best points as presets of a race on fresh seeds."""

import hashlib
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from experiments.proposals.attributes import INDEX
from experiments.proposals.presets import Preset
from experiments.proposals.race import still_racing
from experiments.proposals.space import Space
from speaker.common.files import canonical_json
from speaker.config import TrialConfig

FINALIST = "finalist"
FAILED = 0.0  # the accuracy, in a race, of a training that collapsed or cannot be done


def space_of(points: Sequence[TrialConfig]) -> Space:
    """Return a space that holds these points: it varies the fields in which they differ."""
    values = {name: [getattr(point, name) for point in points] for name in points[0].to_dict()}
    choices = {
        name: tuple(sorted(set(each)))
        for name, each in values.items()
        if name == "d_model" or len(set(each)) > 1  # one field at least
    }
    return Space("finalists", choices)


def finalists(space: Space, points: Sequence[TrialConfig], seeds: int) -> tuple[Preset, ...]:
    """Return points on fresh seeds, all points on the first one before the second.

    The order is the same however the points are ranked, and more seeds only add to it.
    """
    fields = list(space.distributions())
    values = sorted(
        ({name: getattr(point, name) for name in fields} for point in points), key=canonical_json
    )
    return tuple(Preset(FINALIST, each, replicate) for replicate in range(seeds) for each in values)


def digest_of(points: Sequence[TrialConfig]) -> str:
    """Return 6 hex digits that tell sets of points from each other, in whatever order."""
    texts = sorted(point.to_json() for point in points)
    return hashlib.sha256(canonical_json(texts).encode()).hexdigest()[:6]


def still_to_train(presets: Sequence[Preset], trials: Sequence[FrozenTrial]) -> list[Preset]:
    """Return the finalists that no trial has begun and that may still win; none once only one can.

    It follows from the trials that have ended, so a race that was stopped goes on as it was.
    """
    scores: dict[str, dict[int, float]] = {_key(preset): {} for preset in presets}
    mine = [trial for trial in trials if trial.user_attrs[INDEX] < len(presets)]
    for trial in mine:
        preset = presets[trial.user_attrs[INDEX]]
        if trial.state.is_finished() and preset.replicate is not None:
            is_complete = trial.state == TrialState.COMPLETE
            scores[_key(preset)][preset.replicate] = (trial.value or 0.0) if is_complete else FAILED
    racing = still_racing(scores)
    if len(racing) == 1 < len(scores):
        return []
    begun = {trial.user_attrs[INDEX] for trial in mine}
    return [
        preset
        for index, preset in enumerate(presets)
        if index not in begun and _key(preset) in racing
    ]


def _key(preset: Preset) -> str:
    return canonical_json(preset.values)
