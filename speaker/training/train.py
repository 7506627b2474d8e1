"""The one training function: a point and a pack in, a result out.

It knows nothing of studies and runs.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor
from tqdm import tqdm

from speaker.common import cuda
from speaker.common.devices import Compute, ThreadPool
from speaker.common.errors import UserError, first_line
from speaker.common.signals import Interrupted, interruptible
from speaker.config import TrialConfig
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.model.classifier import count_parameters
from speaker.training.checkpoint import Checkpoint, TrainingState
from speaker.training.collapse import DIVERGED, CollapseDetector
from speaker.training.cpu_learner import CpuLearner
from speaker.training.evaluation import Evaluator
from speaker.training.gpu_learner import GpuLearner
from speaker.training.learner import Learner
from speaker.training.metrics import (
    ACCURACY_CROPS,
    ACCURACY_WHOLE,
    LEARNING_RATE,
    LOSS_WHOLE,
    OBJECTIVE,
    STEPS_PER_S,
    TRAIN_ACCURACY,
    TRAIN_LOSS,
    Metrics,
    format_accuracy,
)  # fmt: skip
from speaker.training.outcome import Outcome
from speaker.training.schedule import learning_rate

Report = Callable[[int, Metrics], bool]
PLAIN = Compute()  # one thread, in float32


@dataclass(frozen=True)
class TrialResult:
    """How a training ended, and the best it reached. `best_step` is 0 when it never got a score."""

    outcome: Outcome
    reason: str = ""  # why it is not complete
    steps: int = 0  # trained
    best_step: int = 0
    best: Metrics = field(default_factory=dict)  # the metrics at best_step
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)  # the model's at best_step
    hits: str = ""  # at best_step, of the validation utterances, whole: see `hex_of`
    told: list[int] = field(default_factory=list, repr=False)  # the labels that these were given
    parameters: int = 0
    seconds: float = 0.0
    fallback: str = ""  # why it was computed in a slower way than its device offers

    def scores(self) -> tuple[float | None, float | None]:
        """Return the best accuracies, on whole utterances and on crops, in [0, 1]."""
        return self.best.get(ACCURACY_WHOLE), self.best.get(ACCURACY_CROPS)


def validate_batch_size(config: TrialConfig, pack: Pack, protocol: Protocol) -> None:
    """Raise UserError when a pack has too few training utterances for one batch."""
    rows, _ = protocol.split(pack)
    if len(rows) < config.batch_size:
        raise UserError(
            f"batch_size must be at most the number of training utterances, {len(rows)}, but got "
            f"{config.batch_size}; use --batch-size {len(rows)} or less, or a larger corpus"
        )


def train(
    config: TrialConfig,
    pack: Pack,
    protocol: Protocol,
    report: Report,
    compute: Compute = PLAIN,
    checkpoint: Checkpoint | None = None,
    bar: "tqdm[int] | None" = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrialResult:
    """Train one point on the device its pack lies on,
    and return the best of its evaluations by OBJECTIVE.

    `report(step, metrics)` is called after every evaluation, that is every `config.valid_every`
    steps and after the last. It returns whether to stop; before the last step the trial is then
    pruned. One that will learn nothing more has collapsed (see collapse.py); one that runs out of
    memory is infeasible, and one that a GPU cannot do has failed. All of them have a reason.

    A training that was killed resumes from its `checkpoint`: `report` is called once more with the
    evaluations that the checkpoint holds. On a CPU with the same number of threads the result is
    the same to the last bit. `bar` counts steps.

    Raises UserError for a pack that is too small and for a checkpoint of another training, and
    DeviceLostError when a GPU no longer answers; any other exception passes through. A signal that
    is to end it is let through between two steps, or in an evaluation, after the checkpoint is
    saved (see signals.py).
    """
    validate_batch_size(config, pack, protocol)
    bar = tqdm(disable=True) if bar is None else bar
    checkpoint = checkpoint or Checkpoint()
    try:
        with cuda.noticing_loss(compute.device):
            return _train(config, pack, protocol, report, compute, checkpoint, bar, clock)
    except (RuntimeError, MemoryError) as error:
        if cuda.is_out_of_memory(error):
            outcome, reason = Outcome.INFEASIBLE, f"out of memory: {first_line(error)}"
        elif compute.device.type == "cuda" and cuda.is_device_error(error):
            outcome = Outcome.FAILED
            reason = f"{compute.device} cannot do it: {first_line(error)}"
        else:
            raise
    # Here the error is gone, and with its traceback the tensors that its frames held.
    cuda.release_memory()
    return TrialResult(outcome, reason)


def _train(
    config: TrialConfig,
    pack: Pack,
    protocol: Protocol,
    report: Report,
    compute: Compute,
    checkpoint: Checkpoint,
    bar: "tqdm[int]",
    clock: Callable[[], float],
) -> TrialResult:
    rows, _ = protocol.split(pack)
    with (
        ThreadPool(compute.shards) as pool,
        open_learner(config, pack, rows, compute, pool) as learner,
    ):
        evaluator = Evaluator(pack, protocol, pool, clock)
        detector = CollapseDetector(config, pack, rows)
        return _Loop(config, learner, evaluator, detector, report, checkpoint, bar, clock).run()


@dataclass
class _Loop:
    """The loop of a training: steps, and evaluations of what they have come to."""

    config: TrialConfig
    learner: Learner
    evaluator: Evaluator
    detector: CollapseDetector
    report: Report
    checkpoint: Checkpoint
    bar: "tqdm[int]"
    clock: Callable[[], float]
    stopped: bool = False  # by the search
    collapse: str = ""

    def __post_init__(self) -> None:
        self.state = _resume(self.checkpoint, self.learner)
        self.bar.update(self.state.step)
        self.began = self.clock() - self.state.seconds
        self.since, self.first = self.clock(), self.state.step  # of the steps that are timed

    def run(self) -> TrialResult:
        """Train to the end of the budget, or until the search stops it or it has collapsed."""
        answers = [self.report(step, metrics) for step, metrics in self.state.rows]
        self.stopped = bool(answers and answers[-1])
        while not (self.stopped or self.collapse):
            if self.is_to_evaluate():
                self.evaluate()
            elif self.state.step < self.config.steps:
                self.step()
            else:
                break
        return self.result()

    def is_to_evaluate(self) -> bool:
        """Tell whether an evaluation is due of what the last step has come to."""
        step = self.state.step
        is_due = step % self.config.valid_every == 0 or step == self.config.steps
        return is_due and step > self.state.last

    def step(self) -> None:
        """Do a training step."""
        with self.interruptible():
            pass
        self.learner.step(self.state.step)
        self.state.step += 1
        # True a few times a second: the only wait for a device between evaluations.
        if self.bar.update():
            _show(self.bar, self.state, self.learner)
        if self.is_to_evaluate():
            return
        if self.detector.is_due(self.state.step):
            self.collapse, self.state.is_blown_up = self.look()
        self.save_if_due()

    def evaluate(self) -> None:
        """Evaluate the model, and report that."""
        speed = (self.state.step - self.first) / max(self.clock() - self.since, 1e-9)
        with self.interruptible():  # all that is kept is changed below
            collapse, is_blown_up = self.look()
            scores = {} if collapse else self.evaluator(self.learner.model, self.learner.loss)
        self.collapse, self.state.is_blown_up = collapse, is_blown_up
        if collapse:
            return
        metrics = {
            **_summarise(self.config, self.state, self.learner),
            STEPS_PER_S: speed,
            **scores,
        }
        if not _is_finite(metrics):
            self.collapse = DIVERGED
            return
        seen = self.evaluator
        self.state.add(metrics, seen.hits, seen.told, self.learner.model_state)
        self.save_if_due()
        self.stopped = self.report(self.state.step, metrics)
        self.since, self.first = self.clock(), self.state.step

    def look(self) -> tuple[str, bool]:
        """Return how the training has collapsed, if it has, and whether its loss is blown up."""
        return self.detector.find(self.learner, self.state.is_blown_up)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let through in a `with` block what is to interrupt the training, after all of it is
        saved: the machine may be taken away in a few seconds.
        """
        try:
            with interruptible():
                yield
        except Interrupted:
            self.state.seconds = self.clock() - self.began
            self.checkpoint.save_at_last(self.state, self.learner.state())
            raise

    def save_if_due(self) -> None:
        """Save the checkpoint, if it is time to."""
        if self.checkpoint.due():
            self.state.seconds = self.clock() - self.began
            self.checkpoint.save(self.state, self.learner.state())

    def result(self) -> TrialResult:
        """Return how it ended."""
        state = self.state
        return TrialResult(
            *_end(self.config, state.step, self.collapse, self.stopped),
            steps=state.step,
            best_step=state.best_step,
            best=state.best,
            weights=state.weights,
            hits=state.hits,
            told=state.told,
            parameters=count_parameters(self.learner.model),
            seconds=self.clock() - self.began,
            fallback=self.learner.fallback,
        )


def open_learner(
    config: TrialConfig, pack: Pack, rows: Tensor, compute: Compute, pool: ThreadPool
) -> Learner:
    """Return what does the steps on a device."""
    if compute.device.type == "cpu":
        return CpuLearner(config, pack, rows, compute, pool)
    return GpuLearner(config, pack, rows, compute)


def _resume(checkpoint: Checkpoint, learner: Learner) -> TrainingState:
    """Bring the learner to where the checkpoint is, if there is one, and return how far that is."""
    saved = checkpoint.load()
    if saved is None:
        return TrainingState()
    state, tensors = saved
    learner.load(tensors, state.step)
    return state


def _end(config: TrialConfig, step: int, collapse: str, stopped: bool) -> tuple[Outcome, str]:
    """Return how a training ended at a step, and why it is not complete."""
    if collapse:
        return Outcome.COLLAPSED, f"{collapse}, at step {step}"
    if stopped and step < config.steps:
        return Outcome.PRUNED, f"stopped by the search at step {step}"
    return Outcome.COMPLETE, ""


def _show(bar: "tqdm[int]", state: TrainingState, learner: Learner) -> None:
    loss = learner.peek_loss() / (state.step - state.last)
    best = format_accuracy(state.best.get(OBJECTIVE))
    bar.set_postfix_str(f"loss {loss:.2f}, best {best}", refresh=False)


def _summarise(config: TrialConfig, state: TrainingState, learner: Learner) -> Metrics:
    """Return the means over the steps since the last evaluation. This waits for the device."""
    loss, hits = learner.take_totals()
    steps = state.step - state.last
    means = {TRAIN_LOSS: loss / steps, TRAIN_ACCURACY: hits / steps}
    rate = learning_rate(config, state.step - 1)
    return {**means, LEARNING_RATE: rate, **learner.diagnostics(state.step)}


def _is_finite(metrics: Metrics) -> bool:
    return math.isfinite(metrics[TRAIN_LOSS]) and math.isfinite(metrics[LOSS_WHOLE])
