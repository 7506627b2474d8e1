"""Rescues: a point that collapsed is tried once more, with what most often prevents a collapse.

What collapsed may be a good architecture that was trained badly; only a second try tells. A rescue
is a trial like any other and counts among them.
"""

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from experiments.proposals.attributes import RESCUE_OF, outcome_of
from experiments.proposals.space import Space
from speaker.config import TrialConfig
from speaker.training.outcome import Outcome

SLOWER = 3.0  # by how much a rescue divides the learning rate


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
