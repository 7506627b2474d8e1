"""One trial: sample, tracked run, train, end. The one place that decides how a trial ends."""

from dataclasses import dataclass

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from tqdm import tqdm

from experiments.context import TrainingContext
from experiments.study.space import Space
from experiments.tracking.store import STORE_ERRORS, TrackedRun, TrackingStore, describe_error
from speaker.common.errors import DeviceLostError, UserError, first_line
from speaker.common.seeding import derive_seed
from speaker.common.signals import interruptible, uninterrupted
from speaker.config import TrialConfig
from speaker.training.checkpoint import Checkpoint
from speaker.training.metrics import OBJECTIVE, Metrics
from speaker.training.outcome import Outcome
from speaker.training.train import Report, TrialResult, train

RUN_ID, PRESET, LOSSES = "mlflow.run_id", "preset", "device.losses"  # attributes of an Optuna trial
MAX_LOSSES = 2  # a trial that has lost its device so often ends as failed
STORE_FAILURES = (*STORE_ERRORS, StorageInternalError)  # of MLflow's, Optuna's or a disk
END = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


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

    def config(self, trial: optuna.trial.Trial) -> TrialConfig:
        """Return a trial's point; its seed is addressed by the study's and the trial's number."""
        seed = derive_seed(self.seed, trial.number, "train")
        return self.space.sample(trial, self.base).replace(seed=seed)


def run_trial(shared: StudyContext, trial: optuna.trial.Trial, bar: "tqdm[int]") -> tuple[TrialConfig, TrialResult]:
    """Run a trial that its caller holds the lock of, for the first time or again after a crash, and end it.

    A point that cannot be trained ends as failed and the search goes on. An interruption, a store that stops answering
    or a device that is lost leaves the trial running, to be resumed; DeviceLostError passes through, and the second
    time the trial ends as failed. Any other exception is a bug: the trial and its run are closed as failed, and it
    passes through.
    """
    config = shared.config(trial)
    run = _open_run(shared, trial, config)
    checkpoint = _checkpoint(shared, trial, run, config)
    try:
        with run.guarded():
            run.log_setup(config, shared.context)
            bar.reset(config.steps)
            bar.set_description_str(f"#{trial.number} {config.label()}", refresh=False)
            context = shared.context
            with interruptible():
                result = train(
                    config, context.pack, context.protocol, _report(trial, run), context.compute, checkpoint, bar
                )
            run.log_result(result, config, shared.context)
    except STORE_FAILURES:
        raise
    except DeviceLostError as error:
        losses = trial.user_attrs.get(LOSSES, 0) + 1
        trial.set_user_attr(LOSSES, losses)
        if losses == MAX_LOSSES:
            reason = f"{error}, for the second time"
            _end(shared, trial, TrialResult(Outcome.FAILED, reason))
            run.close("failed", reason)
            checkpoint.remove()
        raise DeviceLostError(f"{error} in trial #{trial.number}") from error
    except Exception as error:
        _end(shared, trial, TrialResult(Outcome.FAILED, describe_error(error)))
        checkpoint.remove()
        raise
    _end(shared, trial, result)
    run.close(result.outcome, result.reason)
    checkpoint.remove()
    return config, result


def store_failed(error: Exception) -> UserError:
    """Return what to tell the user of one of STORE_FAILURES."""
    reason = first_line(error)
    return UserError(f"a store or disk failed ({reason}); mend it and run the same command to go on")


def run_name(trial_number: int, config: TrialConfig) -> str:
    """Return the name of a trial's run, short enough for the UI's table."""
    return f"#{trial_number} {config.label()}"


def _open_run(shared: StudyContext, trial: optuna.trial.Trial, config: TrialConfig) -> TrackedRun:
    """Open the trial's run and store the link on both sides."""
    study = shared.study.study_name
    run_id = trial.user_attrs.get(RUN_ID) or shared.store.find_run(study, trial.number)
    tags = {"study": study, "trial": str(trial.number)}
    if preset := trial.user_attrs.get(PRESET):
        tags["preset"] = preset
    run = shared.store.open_run(run_name(trial.number, config), tags, shared.parent, run_id)
    trial.set_user_attr(RUN_ID, run.run_id)
    return run


def _checkpoint(shared: StudyContext, trial: optuna.trial.Trial, run: TrackedRun, config: TrialConfig) -> Checkpoint:
    """Return the trial's checkpoint. One that cannot be gone on from, of other code say, must not stop the search."""
    checkpoint = shared.context.checkpoint(run.run_id, config)
    try:
        checkpoint.load()
    except UserError as error:
        tqdm.write(f"#{trial.number} starts over: {error}")
        checkpoint.remove()
    return checkpoint


def _report(trial: optuna.trial.Trial, run: TrackedRun) -> Report:
    """Return what hears of each evaluation. A resumed trial measures again what the killed one had reported."""
    reported = max(trial.storage.get_trial(trial._trial_id).intermediate_values, default=-1)

    def report(step: int, metrics: Metrics) -> bool:
        with uninterrupted():
            run.log(step, metrics)
            if step > reported:
                trial.report(metrics[OBJECTIVE], step)
            return step >= reported and trial.should_prune()

    return report


def _end(shared: StudyContext, trial: optuna.trial.Trial, result: TrialResult) -> None:
    """Tell the study; a pruned trial keeps the value of its last report."""
    if result.outcome == "complete":
        shared.study.tell(trial, result.best[OBJECTIVE])
        return
    trial.set_user_attr("reason", result.reason)
    shared.study.tell(trial, state=END[result.outcome])
