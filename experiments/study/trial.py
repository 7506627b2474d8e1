"""One trial of a study: its point, its run, and what the study hears of it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from tqdm import tqdm

from experiments.context import TrainingContext
from experiments.outages import Patience
from experiments.proposals.attributes import (
    BROKEN,
    CONSTRAINED,
    LOSSES,
    OPTUNA_STATES,
    OUTCOME,
    OVERRIDES,
    PRESET,
    REPEATS,
    REPLICATE,
    RESCUE_OF,
    RUN_ID,
    SEEDED_AS,
    STEPS,
)
from experiments.proposals.space import Space
from experiments.tracked_training import TrackedTraining
from experiments.tracking import names
from experiments.tracking.run import STORE_ERRORS, FencedError, TrackedRun
from experiments.tracking.store import TrackingStore
from experiments.tracking.study_run import has_run
from speaker.common.errors import DeviceLostError, UserError
from speaker.common.seeding import derive_seed
from speaker.config import PRESETS, TrialConfig
from speaker.training.metrics import OBJECTIVE, Metrics
from speaker.training.outcome import Outcome
from speaker.training.train import Report, TrialResult

MAX_LOSSES = 2  # a trial that has lost its device so often ends as failed
STORE_FAILURES = (*STORE_ERRORS, StorageInternalError)  # of MLflow's, Optuna's or a disk


@dataclass(frozen=True)
class StudyContext:
    """What the trials of one study share."""

    study: optuna.Study
    space: Space
    base: TrialConfig
    seed: int
    context: TrainingContext
    store: TrackingStore
    parent: str  # the study's run
    prune_presets: bool = False
    # That the trial which runs here is still this worker's: see Lock.
    prove: Callable[[], bool] = lambda: False
    patience: Patience = field(default_factory=lambda: Patience(failures=STORE_FAILURES))

    def config(self, trial: optuna.trial.BaseTrial) -> TrialConfig:
        """Return a trial's point.

        Its seed is addressed by the study's and the trial's number, or by that of the replicate:
        points of one replicate share their seed, so that they differ in nothing else. A rescue's is
        addressed by its parent's number, since its own depends on who was faster; a repetition's is
        that of the trial that failed.
        """
        replicate = trial.user_attrs.get(REPLICATE)
        number = trial.user_attrs.get(SEEDED_AS, trial.number)
        seed = derive_seed(self.seed, number, "train")
        if replicate is not None:
            seed = derive_seed(self.seed, replicate, "replicate")
        if (parent := trial.user_attrs.get(RESCUE_OF)) is not None:
            seed = derive_seed(self.seed, parent, "rescue")
        changes = trial.user_attrs.get(OVERRIDES, {})
        return self.space.sample(trial, self.base).replace(**changes, seed=seed)


def run_trial(
    shared: StudyContext, trial: optuna.trial.Trial, bar: "tqdm[int]"
) -> tuple[TrialConfig, TrialResult] | None:
    """Run a trial whose lock the caller holds, for the first time or again after a crash, and end
    it; return None where it was lost to another worker.

    A point that cannot be trained ends as such and the search goes on. What leaves a training
    open leaves the trial running, to be resumed; the second time that it loses its device, it ends
    as failed.
    """
    patience = replace(shared.patience, say=lambda text: bar.write(f"#{trial.number}: {text}"))
    config = patience.insist(lambda: shared.config(trial))
    training = TrackedTraining(
        config,
        shared.context,
        patience.insist(lambda: open_run(shared, trial, config, bar)),
        lambda result: _tell(shared, trial, result),
        shared.prove,
        lambda: _baseline(shared.study),
        patience,
    )
    patience.insist(lambda: _find_checkpoint(training, trial, bar))
    listener = patience.insist(lambda: listen(trial, shared.prune_presets))
    # Before the bar is drawn anew: what it says is of one trial.
    bar.set_description_str(run_name(trial.number, config), refresh=False)
    bar.set_postfix_str("", refresh=False)
    bar.reset(config.steps)
    try:
        return config, training.train(listener, bar)
    except FencedError as error:
        bar.write(
            f"#{trial.number}: this worker's lock on it was lost ({error}); it goes on from its "
            "checkpoint, here or elsewhere"
        )
        return None
    except DeviceLostError as error:
        losses = trial.user_attrs.get(LOSSES, 0) + 1
        trial.set_user_attr(LOSSES, losses)
        if losses == MAX_LOSSES:
            training.end(TrialResult(Outcome.FAILED, f"{error}, for the second time"))
        raise DeviceLostError(f"{error} in trial #{trial.number}") from error


def run_name(trial_number: int, config: TrialConfig) -> str:
    """Return the name of a trial's run, short enough for the UI's table."""
    return f"#{trial_number} {config.label()}"


def open_run(
    shared: StudyContext, trial: optuna.trial.Trial, config: TrialConfig, bar: "tqdm[int]"
) -> TrackedRun:
    """Open the trial's run and store the link on both sides."""
    study = shared.study.study_name
    run_id = trial.user_attrs.get(RUN_ID)
    if run_id and not has_run(shared.store, run_id):  # the study's own run is there
        bar.write(f"#{trial.number} starts over in a new run: its run {run_id} was deleted")
        run_id = None
    run_id = run_id or shared.store.find_run(study, trial.number)
    tags = {names.STUDY: study, names.TRIAL: str(trial.number)}
    if preset := trial.user_attrs.get(PRESET):
        tags[names.PRESET] = preset
    if (replicate := trial.user_attrs.get(REPLICATE)) is not None:
        tags[names.REPLICATE] = str(replicate)
    if (parent := trial.user_attrs.get(RESCUE_OF)) is not None:
        tags[names.RESCUE_OF] = str(parent)
    if (failed := trial.user_attrs.get(REPEATS)) is not None:
        tags[names.REPEATS] = str(failed)
    run = shared.store.open_run(run_name(trial.number, config), tags, shared.parent, run_id)
    trial.set_user_attr(RUN_ID, run.run_id)
    return run


def _baseline(study: optuna.Study) -> float | None:
    """Return the accuracy of the homework's first point, once that is trained to the end."""
    first, *_ = PRESETS
    values = (
        trial.value
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.user_attrs.get(PRESET) == first
    )
    return next(values, None)


def _find_checkpoint(
    training: TrackedTraining, trial: optuna.trial.Trial, bar: "tqdm[int]"
) -> None:
    """Say where a trial that had begun starts over, and remove a checkpoint that cannot be resumed,
    one of other code say: it must not stop the search.
    """
    why = ""
    try:
        has_begun = bool(trial.storage.get_trial(trial._trial_id).intermediate_values)
        if not training.checkpoint.load() and has_begun:
            why = "no checkpoint of it is found here"
    except UserError as error:
        why = str(error)
        training.checkpoint.remove()
    if why:
        bar.write(f"#{trial.number} starts over: {why}")
        training.run.tag(names.STARTED_OVER, why)


def listen(trial: optuna.trial.Trial, prune_presets: bool = False) -> Report:
    """Return what tells the study of each evaluation, and asks it whether to stop.

    A resumed trial measures again what the killed one had reported. A preset is heard like any
    other, so that others are measured by it, but stopped only if that is asked for.
    """
    may_stop = prune_presets or PRESET not in trial.user_attrs
    reported = max(trial.storage.get_trial(trial._trial_id).intermediate_values, default=-1)

    def report(step: int, metrics: Metrics) -> bool:
        if step > reported:
            with _fenced(trial):
                trial.report(metrics[OBJECTIVE], step)
        return step >= reported and trial.should_prune() and may_stop

    return report


def _tell(shared: StudyContext, trial: optuna.trial.Trial, result: TrialResult) -> None:
    """Tell the study how a trial ended; a pruned one keeps the value of its last report.

    Where it knows already, a call that failed had done its work.
    """
    shared.prove()
    state, known = OPTUNA_STATES[result.outcome], trial.storage.get_trial(trial._trial_id).state
    if known.is_finished() and known != state:
        raise FencedError("another worker has ended it")
    if known == state:
        return
    with _fenced(trial):
        if result.outcome == Outcome.COMPLETE:
            shared.study.tell(trial, result.best[OBJECTIVE])
            return
        trial.set_user_attr("reason", result.reason)
        trial.set_user_attr(OUTCOME, result.outcome)
        trial.set_user_attr(STEPS, result.steps)
        if result.outcome in CONSTRAINED and result.outcome not in trial.constraints:
            trial.set_constraint(result.outcome, BROKEN)
        shared.study.tell(trial, state=state)


@contextlib.contextmanager
def _fenced(trial: optuna.trial.Trial) -> Iterator[None]:
    """Turn Optuna's refusal to change a trial that has ended, by another worker's hand, into
    FencedError.
    """
    try:
        yield
    except (UpdateFinishedTrialError, ValueError) as error:  # the latter where it is to be ended
        if not trial.storage.get_trial(trial._trial_id).state.is_finished():
            raise
        raise FencedError("another worker has ended it") from error
