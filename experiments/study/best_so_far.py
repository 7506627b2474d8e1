"""The best accuracy so far, on the study's run: a value for each number of ended trials."""

import math
from collections.abc import Callable
from functools import partial

from optuna.trial import FrozenTrial, TrialState

from experiments.proposals.attributes import RUN_ID
from experiments.tracking.store import TrackingStore
from experiments.tracking.study_run import (
    BestSoFar,
    has_run,
    read_best_so_far,
    write_best_so_far,
)


def log_best_so_far(
    store: TrackingStore, parent: str, ended: list[FrozenTrial], now: Callable[[], float]
) -> None:
    """Log what is missing of the best of a study's ended trials; the caller sees to it that no
    other process does so at the same time.

    What stands there is not written again. But when the run of the best was deleted and no trial
    has ended since, the last value is followed by the one that holds now; nan where none is left.
    Where more trials are counted than were given, another process knows more: nothing is written.
    """
    counted, best = read_best_so_far(store, parent)
    if len(ended) < counted:
        return
    rows, last = after_each(ended, partial(has_run, store), counted)
    if not rows and counted and last != best and not (math.isnan(last) and math.isnan(best)):
        rows = [(len(ended), int(now() * 1000), last)]
    if rows:
        write_best_so_far(store, parent, rows)


def after_each(
    ended: list[FrozenTrial], is_kept: Callable[[str], bool], counted: int
) -> tuple[list[BestSoFar], float]:
    """Return the best after each of the ended trials behind the first `counted`, in the order of
    their ends, once there is one, and the best of all; a trial without its run does not count.
    """

    def is_there(trial: FrozenTrial) -> bool:
        return RUN_ID not in trial.user_attrs or is_kept(trial.user_attrs[RUN_ID])

    order = sorted(ended, key=lambda trial: (_ended_at(trial), trial.number))
    before = sorted(order[:counted], key=_accuracy, reverse=True)
    best = next((_accuracy(trial) for trial in before if is_there(trial)), -math.inf)
    rows = []
    for count, trial in enumerate(order[counted:], start=counted + 1):
        # Only what would be the best is looked up: one call for most trials.
        if _accuracy(trial) > best and is_there(trial):
            best = _accuracy(trial)
        if best > -math.inf:
            rows.append((count, _ended_at(trial), best))
    return rows, best if best > -math.inf else math.nan


def _accuracy(trial: FrozenTrial) -> float:
    if trial.state != TrialState.COMPLETE or trial.value is None:
        return -math.inf
    return trial.value


def _ended_at(trial: FrozenTrial) -> int:
    return int(trial.datetime_complete.timestamp() * 1000) if trial.datetime_complete else 0
