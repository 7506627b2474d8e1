"""How a worker comes by its trials, beside the other workers of a study.

A worker holds a trial's lock while it runs it; a running trial whose lock can be taken lost its
worker, and is run again under its own number. Samplers are seeded by that number.
"""

from collections.abc import Callable, Container
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from experiments.proposals.attributes import INDEX, OVERRIDES, PRESET, REPLICATE, RESCUE_OF
from experiments.proposals.rescue import changes_of, next_to_rescue, split_changes
from experiments.proposals.samplers import make_sampler
from experiments.study.locks import Lock, Locks
from experiments.study.settings import SearchSettings
from experiments.study.stopping import Limits, presets_left
from speaker.common.seeding import derive_seed
from speaker.config import TrialConfig


class Claims:
    """The trials that are still to run."""

    def __init__(
        self,
        study: optuna.Study,
        locks: Locks,
        settings: SearchSettings,
        limits: Limits,
        config: Callable[[FrozenTrial], TrialConfig],
    ) -> None:
        """`config` gives a trial's whole point."""
        self._study, self._locks, self._settings = study, locks, settings
        self._limits, self._config = limits, config

    def take(self) -> tuple[optuna.trial.Trial, Lock] | None:
        """Take the next trial, unless there is none, and give it its point."""
        with self._locks.holding("study"):
            taken = self._take_one()
        if taken is None:
            return None
        trial, lock = taken
        try:
            return self._with_point(trial), lock
        except BaseException:
            lock.release()  # so that whoever tries again can take it
            raise

    def _take_one(self) -> tuple[optuna.trial.Trial, Lock] | None:
        """Take a trial whose worker died, or else a new one, unless a limit is reached.

        Limits are looked at under the study's lock: no two workers start a trial for the same rest
        of a budget.
        """
        trials = self._trials()
        for trial in self._unheld(trials):
            if lock := self._locks.try_take(_lock_name(trial.number)):
                if self._trials()[trial.number].state == TrialState.RUNNING:
                    return optuna.trial.Trial(self._study, trial._trial_id), lock
                lock.release()  # it ended between our reading and our taking
        if self._limits.reached(trials):
            return None
        if all(trial.state != TrialState.WAITING for trial in trials):
            self._enqueue(trials)
        new = self._study.ask()
        return new, self._locks.take(_lock_name(new.number))

    def _with_point(self, trial: optuna.trial.Trial) -> optuna.trial.Trial:
        """Return this worker's trial with a point of its own.

        That is proposed while others propose theirs, and written while nobody else writes one: when
        it was taken meanwhile, it is proposed anew. So no point is tried twice by chance.
        """
        before = self._points()
        if trial.number in before:
            return trial
        self._seed_sampler(trial.number)
        is_given = bool(trial._fixed_params)
        if not is_given:
            trial.relative_params  # noqa: B018  # the sampler is asked when this is first read
        with self._locks.holding("study"):
            if not is_given and self._is_taken(trial.relative_params, before):
                self._seed_sampler(trial.number)
                trial = optuna.trial.Trial(self._study, trial._trial_id)
            self._settings.space.sample(trial, self._settings.base)
        return trial

    def _points(self) -> dict[int, dict[str, Any]]:
        """Return the points of the trials that have one, by number."""
        fields = self._settings.space.distributions().keys()
        return {
            trial.number: trial.params for trial in self._trials() if fields <= trial.params.keys()
        }

    def _is_taken(self, point: dict[str, Any], before: Container[int]) -> bool:
        """Tell whether a trial that had no point before has this one now."""
        return any(
            other == point for number, other in self._points().items() if number not in before
        )

    def _unheld(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Return the running trials whose workers seem to be dead, by one look at all locks."""
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        held = self._locks.held([_lock_name(trial.number) for trial in running])
        return [trial for trial in running if _lock_name(trial.number) not in held]

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _enqueue(self, trials: list[FrozenTrial]) -> None:
        """Say what the next trial is to be, where that is not the sampler's to choose:
        one of the presets, and after these a rescue.
        """
        if left := presets_left(self._settings, trials):
            preset = left[0]
            index = self._settings.presets.index(preset)
            about: dict[str, Any] = {PRESET: preset.name, REPLICATE: preset.replicate, INDEX: index}
            self._study.enqueue_trial(preset.values, user_attrs=about)
        elif self._settings.rescue and (parent := next_to_rescue(trials)):
            changes = changes_of(self._config(parent))
            inside, outside = split_changes(self._settings.space, changes)
            about = {RESCUE_OF: parent.number, OVERRIDES: outside}
            self._study.enqueue_trial({**parent.params, **inside}, user_attrs=about)

    def _seed_sampler(self, number: int) -> None:
        seed = derive_seed(self._settings.seed, number, "sampler")
        self._study.sampler = make_sampler(self._settings.sampler, self._settings.space, seed)


def _lock_name(number: int) -> str:
    return f"trial-{number}"
