"""When a search starts no new trial: what can end it, and what the end of one is called."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from optuna.trial import FrozenTrial, TrialState

from experiments.proposals.attributes import REPEATS, STEPS
from experiments.proposals.finalists import still_to_train
from experiments.proposals.presets import Preset
from experiments.proposals.rescue import counted
from experiments.study.settings import SearchSettings
from experiments.tracking.store import TrackingStore

MARGIN = 0.005  # of accuracy: an answer that is better by no more is not better

# What can be expected of a study's complete trials on new utterances, by number.
Expectations = Callable[[TrackingStore, str], Mapping[int, float]]


class Limit(StrEnum):
    """What ended a search, by its flag."""

    TRIALS = "--trials"
    TIMEOUT = "--timeout"
    PATIENCE = "--patience"
    BUDGET = "--budget"


class Limits:
    """What a search's settings allow, given the study's trials.

    All answers follow from the trials that have ended, so they are the same for each worker, and
    after each resumption.
    """

    def __init__(
        self, settings: SearchSettings, expected: Callable[[], Mapping[int, float]] | None
    ) -> None:
        """`expected()` is what patience goes by: see Expectations. Without it there is none."""
        self._settings = settings
        self._expected = expected
        self._judged = (0, False)  # how many trials had ended, and whether they had stalled

    def planned(self, trials: Sequence[FrozenTrial]) -> int:
        """Return how many trials the study is to have: in a race, those that there are and those of
        points that may still win.
        """
        if self._settings.is_race:
            return len(counted(trials)) + len(presets_left(self._settings, trials))
        return self._settings.trials

    def missing(self, trials: Sequence[FrozenTrial]) -> int:
        """Return how many trials there are still to run, were none of them stopped early: those
        that were left open, and the new ones that the limits allow.
        """
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        if self.reached(trials):
            return running
        ended = _ended(trials)
        missing = self.planned(trials) - len(_ended(counted(trials)))
        if self._settings.budget is not None:
            left = self._settings.budget - steps_of(self._settings, ended)
            missing = min(missing, max(running, -(-left // self._settings.base.steps)))
        return missing

    def is_complete(self, trials: Sequence[FrozenTrial]) -> bool:
        """Tell whether a study of these trials has all that it is to have."""
        return len(_ended(counted(trials))) >= self.planned(trials)

    def reached(self, trials: Sequence[FrozenTrial]) -> Limit | None:
        """Return what keeps a study of these trials from a new one, if anything does."""
        budget, ended = self._settings.budget, _ended(trials)
        begun = sum(trial.state != TrialState.WAITING for trial in counted(trials))
        if begun >= self.planned(trials):
            return Limit.TRIALS
        if budget is not None and steps_of(self._settings, ended) >= budget:
            return Limit.BUDGET
        return Limit.PATIENCE if self._has_stalled([trial.number for trial in ended]) else None

    def ended_by(self, trials: Sequence[FrozenTrial]) -> Limit:
        """Return what ended a search that was not interrupted."""
        if self.is_complete(trials):
            return Limit.TRIALS
        limit = self.reached(trials)
        return limit if limit in (Limit.BUDGET, Limit.PATIENCE) else Limit.TIMEOUT

    def _has_stalled(self, ended: list[int]) -> bool:
        """Tell whether patience is at its end: once for each trial that ends, since the model of
        the learning curves takes a second.
        """
        patience = self._settings.patience
        if patience is None or self._expected is None or len(ended) <= patience:
            return False
        if self._judged[0] != len(ended):
            self._judged = len(ended), has_stalled(ended, self._expected(), patience)
        return self._judged[1]


def presets_left(settings: SearchSettings, trials: Sequence[FrozenTrial]) -> Sequence[Preset]:
    """Return the points given to a study that no trial has begun, the next one first."""
    if settings.is_race:
        return still_to_train(settings.presets, trials)
    return settings.presets[sum(REPEATS not in trial.user_attrs for trial in trials) :]


def steps_of(settings: SearchSettings, ended: Sequence[FrozenTrial]) -> int:
    """Return the training steps of trials that have ended."""
    return sum(
        settings.base.steps
        if trial.state == TrialState.COMPLETE
        else trial.user_attrs.get(STEPS, trial.last_step or 0)
        for trial in ended
    )


def has_stalled(ended: Sequence[int], expected: Mapping[int, float], patience: int) -> bool:
    """Tell whether the last `patience` of the ended trials, by number, brought no better answer.

    The best of them is compared with the best of those before, both as what is known now has it: a
    lucky accuracy that has been seen through since then does not count as one that was not beaten.
    Without an answer before, there is nothing to be patient about.
    """
    order = sorted(ended)
    before = [expected[number] for number in order[:-patience] if number in expected]
    last = [expected[number] for number in order[-patience:] if number in expected]
    return bool(before) and max(last, default=0.0) <= max(before) + MARGIN


def _ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state.is_finished()]
