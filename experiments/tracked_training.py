"""A training that is tracked: one trial's life, for search.py and train_trial.py alike."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tqdm import tqdm

from experiments.context import TrainingContext
from experiments.tracking.access import explain_failure
from experiments.tracking.run import STORE_ERRORS, FencedError, TrackedRun, describe_error
from speaker.common.errors import DeviceLostError, UserError
from speaker.common.signals import interruptible, uninterrupted
from speaker.config import TrialConfig
from speaker.training.metrics import Metrics
from speaker.training.outcome import Outcome
from speaker.training.train import Report, TrialResult, train


@dataclass(frozen=True)
class TrackedTraining:
    """One trial: its point, its run in MLflow, and `tell`,
    which notes its end wherever else it is known; `baseline` looks up what to compare it with.
    """

    config: TrialConfig
    context: TrainingContext
    run: TrackedRun
    tell: Callable[[TrialResult], None]
    prove: Callable[[], None] = lambda: None  # raises FencedError where it is another worker's now
    baseline: Callable[[], float | None] = lambda: None

    def train(
        self, listen: Report, bar: "tqdm[int]", failures: tuple[type[Exception], ...]
    ) -> TrialResult:
        """Train the point, log all of it, and end the trial; `listen` hears of each evaluation.

        What is no fault of the point leaves the trial open and its checkpoint in place, to be
        resumed: an interruption, a lost device (DeviceLostError), and the `failures` of a store or
        disk. After FencedError nothing is written: another worker may have it. After any other
        exception, which is a bug, the trial has failed. All of them pass through.
        """

        def report(step: int, metrics: Metrics) -> bool:
            with uninterrupted():
                self.prove()
                self.run.log(step, metrics)
                return listen(step, metrics)

        context, checkpoint = self.context, self.context.checkpoint(self.run.run_id, self.config)
        try:
            with self.run.guarded():
                self.run.log_setup(self.config, context)
                with interruptible():
                    result = train(
                        self.config,
                        context.pack,
                        context.protocol,
                        report,
                        context.compute,
                        checkpoint,
                        bar,
                    )
                self.prove()
                self.run.log_result(result, self.config, context, self.baseline())
        except (DeviceLostError, FencedError):
            raise
        except failures:
            raise
        except Exception as error:
            self.tell(TrialResult(Outcome.FAILED, describe_error(error)))
            checkpoint.remove()
            raise
        self.end(result)
        return result

    def end(self, result: TrialResult) -> None:
        """End the trial.

        A kill between two of these writes is made good when the trial is opened again.
        """
        self.tell(result)
        self.run.close(result.outcome, result.reason)
        self.context.checkpoint(self.run.run_id, self.config).remove()


@contextlib.contextmanager
def explaining_failures(
    next_step: str, failures: tuple[type[Exception], ...] = STORE_ERRORS
) -> Iterator[None]:
    """Turn failures of a store or disk into a UserError that names the next step."""
    try:
        yield
    except BrokenPipeError:  # whoever read our output has ended; no store failed
        raise
    except failures as error:
        raise UserError(
            f"a store or disk failed ({explain_failure(error)}); fix that, and {next_step}"
        ) from error
