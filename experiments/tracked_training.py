"""A training that is tracked: one trial's life, for search.py and train_trial.py alike."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tqdm import tqdm

from experiments.context import TrainingContext
from experiments.outages import Patience
from experiments.tracking.access import explain_failure, will_pass
from experiments.tracking.checkpoint_copies import copies_of
from experiments.tracking.run import STORE_ERRORS, FencedError, TrackedRun, describe_error
from speaker.common.errors import DeviceLostError, UserError
from speaker.config import TrialConfig
from speaker.training.checkpoint import Checkpoint
from speaker.training.metrics import Metrics
from speaker.training.outcome import Outcome
from speaker.training.train import Report, TrialResult, train

MAX_TIME_FRACTION = 0.1  # of a training, that calls of a failing store may take


@dataclass(frozen=True)
class TrackedTraining:
    """One trial: its point, its run in MLflow, and `tell`,
    which notes its end wherever else it is known; `baseline` looks up what to compare it with.
    """

    config: TrialConfig
    context: TrainingContext
    run: TrackedRun
    tell: Callable[[TrialResult], None]
    # Raises FencedError where it is another worker's now; tells whether it was for a while.
    prove: Callable[[], bool] = lambda: False
    baseline: Callable[[], float | None] = lambda: None
    patience: Patience = field(default_factory=lambda: Patience(failures=STORE_ERRORS))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """What the training resumes from, here or on another machine."""
        run = self.run
        return self.context.checkpoint(run.run_id, self.config, self.patience.say, copies_of(run))

    def train(self, listen: Report, bar: "tqdm[int]") -> TrialResult:
        """Train the point, log all of it, and end the trial; `listen` hears of each evaluation.

        While a store or disk fails the training goes on, and what could not be written is written
        later. What is no fault of the point leaves the trial open and its checkpoint in place, to
        be resumed: an interruption, which is to be deferred (see signals.py), a lost device
        (DeviceLostError), and a store or disk that fails beyond patience. After FencedError nothing
        is written: another worker may have it. After any other exception, which is a bug, the
        trial has failed. All of them pass through.
        """
        failures, insist = self.patience.failures, self.patience.insist
        rows = Rows(lambda step, metrics: self._log(step, metrics, listen), self.patience)
        try:
            with self.run.guarded(failures):
                insist(lambda: self.run.log_setup(self.config, self.context))
                result = train(
                    self.config,
                    self.context.pack,
                    self.context.protocol,
                    rows.add,
                    self.context.compute,
                    insist(lambda: self.checkpoint),
                    bar,
                )
                insist(rows.write)
                insist(lambda: self._log_result(result))
        except (DeviceLostError, FencedError):
            raise
        except failures:
            raise
        except Exception as error:
            self.tell(TrialResult(Outcome.FAILED, describe_error(error)))
            self.checkpoint.remove()
            raise
        self.end(result)
        return result

    def end(self, result: TrialResult) -> None:
        """End the trial.

        A kill between two of these writes is made good when the trial is opened again.
        """
        insist = self.patience.insist
        insist(lambda: self.tell(result))
        insist(lambda: self.checkpoint.remove())
        insist(lambda: self.run.close(result.outcome, result.reason))

    def _log(self, step: int, metrics: Metrics, listen: Report) -> bool:
        self._prove()
        self.run.log(step, metrics)
        return listen(step, metrics)

    def _log_result(self, result: TrialResult) -> None:
        self._prove()
        self.run.log_result(result, self.config, self.context, self.baseline())

    def _prove(self) -> None:
        if self.prove():
            self.run.forget()


class Rows:
    """The evaluations of a training on their way to the stores, in order: those that a store cannot
    take now are written later.
    """

    def __init__(self, write: Report, patience: Patience) -> None:
        self._write = write
        self._patience = patience
        self._waiting: deque[tuple[int, Metrics]] = deque()
        self._next_try = -math.inf

    def add(self, step: int, metrics: Metrics) -> bool:
        """Write an evaluation, or keep it for later; tell whether the training is to stop."""
        self._waiting.append((step, metrics))
        began = self._patience.clock()
        if began < self._next_try:
            return False
        try:
            return self.write()
        except self._patience.failures as error:
            if not will_pass(error):
                raise
            if self._next_try == -math.inf:
                self._patience.say(f"training goes on, its rows wait: {explain_failure(error)}")
            # A store that takes long to fail must not take the training's time.
            now = self._patience.clock()
            self._next_try = now + (now - began) / MAX_TIME_FRACTION
            return False

    def write(self) -> bool:
        """Write all that waits; tell whether the training is to stop.

        Raises what a store does: those that it had not taken wait on.
        """
        stop = False
        while self._waiting:
            stop = self._write(*self._waiting[0])
            self._waiting.popleft()
        self._next_try = -math.inf
        return stop


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
