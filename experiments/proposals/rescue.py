"""Second tries: a point that collapsed, with what most often prevents a collapse, and a trial that
failed, as it was.

What collapsed may be a good architecture that was trained badly; only a second try tells. A rescue
is a trial like any other and counts among them. What failed says nothing: as Optuna reopens no
trial that has ended, another one repeats it, with the same seed, and counts in its place.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from experiments.proposals.attributes import (
    INDEX,
    OVERRIDES,
    PRESET,
    REPEATS,
    REPLICATE,
    RESCUE_OF,
    SEEDED_AS,
    outcome_of,
)
from experiments.proposals.space import Space
from speaker.config import TrialConfig
from speaker.training.outcome import Outcome

SLOWER = 3.0  # by how much a rescue divides the learning rate
KEPT = (PRESET, REPLICATE, INDEX, RESCUE_OF, OVERRIDES)  # attributes that make a point what it is


def next_to_rescue(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the first trial that collapsed, is no rescue and has none yet, if there is one."""
    rescued = {trial.user_attrs.get(RESCUE_OF) for trial in trials}
    return next(
        (
            trial
            for trial in trials
            if trial.state.is_finished()
            and outcome_of(trial) == Outcome.COLLAPSED
            and RESCUE_OF not in trial.user_attrs
            and trial.number not in rescued
        ),
        None,
    )


def changes_of(config: TrialConfig) -> dict[str, Any]:
    """Return what a rescue changes of a point that collapsed.

    A post-norm encoder becomes a pre-norm one, whose gradients reach its first layers; a pre-norm
    one learns at a third of the rate.
    """
    return {"lr": config.lr / SLOWER} if config.norm_first else {"norm_first": True}


def split_changes(space: Space, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the changes that are a trial's parameters, and those that override its point.

    The latter are of fields that the space does not vary, or not so far.
    """
    fields = space.distributions()
    inside = {
        name: value
        for name, value in changes.items()
        if name in fields and space.holds({name: value})
    }
    return inside, {name: value for name, value in changes.items() if name not in inside}


def to_repeat(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the failed trials that no other repeats."""
    return [trial for trial in counted(trials) if trial.state == TrialState.FAIL]


def counted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count among a study's: all but those that another one repeats."""
    every = list(trials)
    repeated = {trial.user_attrs.get(REPEATS) for trial in every}
    return [trial for trial in every if trial.number not in repeated]


def attributes_of_repetition(trial: FrozenTrial) -> dict[str, Any]:
    """Return what the repetition of a failed trial says of itself."""
    first = trial.user_attrs.get(SEEDED_AS, trial.number)
    kept = {key: trial.user_attrs[key] for key in KEPT if key in trial.user_attrs}
    return {**kept, REPEATS: trial.number, SEEDED_AS: first}
