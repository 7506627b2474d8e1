"""The one training function: a point and a pack in, a result out. It knows nothing of studies and runs."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from tqdm import tqdm

from speaker.common import cuda
from speaker.common.devices import Compute, ThreadPool
from speaker.common.errors import UserError, first_line
from speaker.config import TrialConfig
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.model.classifier import count_parameters
from speaker.training.checkpoint import Checkpoint, TrainingState
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
)
from speaker.training.schedule import learning_rate

Report = Callable[[int, Metrics], bool]
State = Literal["complete", "pruned", "failed"]
PLAIN = Compute()  # one thread, in float32


@dataclass(frozen=True)
class TrialResult:
    """How a training ended, and the best it reached. `best_step` is 0 when it never got a score."""

    state: State
    reason: str = ""  # why it was pruned or failed
    steps: int = 0  # trained
    best_step: int = 0
    best: Metrics = field(default_factory=dict)  # the metrics at best_step
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)  # at best_step, float32 on the CPU
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
            f"batch_size must be at most the number of training utterances, {len(rows)}, but got {config.batch_size}; "
            "use a larger corpus or a smaller batch"
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
    """Train one point on the device its pack lies on, and return the best of its evaluations by OBJECTIVE.

    `report(step, metrics)` hears of every evaluation, every `config.valid_every` steps and after the last, and
    answers whether to stop; before the last step the state is then "pruned". A training that diverges, runs out of
    memory or is beyond a GPU has failed, with a reason. With a `checkpoint`, a training that was cut off goes on from
    there: `report` hears once more of the evaluations it holds, and on a CPU with as many threads the end is the same
    bit for bit. `bar` counts steps. Raises UserError for a pack too small and for a checkpoint of another training, and
    DeviceLostError when a GPU answers no more; any other exception passes through.
    """
    validate_batch_size(config, pack, protocol)
    bar = tqdm(disable=True) if bar is None else bar
    try:
        with cuda.noticing_loss(compute.device):
            return _train(config, pack, protocol, report, compute, checkpoint or Checkpoint(), bar, clock)
    except (RuntimeError, MemoryError) as error:
        if cuda.is_out_of_memory(error):
            reason = f"out of memory: {first_line(error)}"
        elif compute.device.type == "cuda" and cuda.is_device_error(error):
            reason = f"{compute.device} cannot do it: {first_line(error)}"
        else:
            raise
    cuda.release_memory()
    return TrialResult("failed", reason)


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
    with ThreadPool(compute.shards) as pool, open_learner(config, pack, rows, compute, pool) as learner:
        evaluate = Evaluator(pack, protocol, pool, clock)
        training = _go_on(checkpoint, learner)
        bar.update(training.step)
        began = clock() - training.seconds
        since, first = clock(), training.step  # of the steps whose speed is measured
        answers = [report(step, metrics) for step, metrics in training.rows]
        stopped = bool(answers and answers[-1])
        reason = ""

        while training.step < config.steps and not (stopped or reason):
            learner.step(training.step)
            training.step += 1
            if bar.update():  # true a few times a second: the only wait for a device between evaluations
                loss = learner.peek_loss() / (training.step - training.last)
                bar.set_postfix(loss=f"{loss:.2f}", accuracy=_percent(training.best), refresh=False)
            evaluated = training.step % config.valid_every == 0 or training.step == config.steps
            if evaluated:
                metrics = _measure(config, training, learner) | learner.diagnostics(training.step)
                metrics[STEPS_PER_S] = (training.step - first) / max(clock() - since, 1e-9)
                metrics |= evaluate(learner.model)
                losses = metrics[TRAIN_LOSS], metrics[LOSS_WHOLE]
                if not (all(map(math.isfinite, losses)) and learner.is_finite()):
                    reason = f"diverged: a loss or a weight is not finite any more at step {training.step}"
                    break
                training.add(metrics, learner.named_weights)
            if checkpoint.due():
                training.seconds = clock() - began
                checkpoint.save(training, learner.state())
            if evaluated:
                stopped = report(training.step, metrics)
                since, first = clock(), training.step

        state: State = "failed" if reason else "complete"
        if stopped and training.step < config.steps:
            state, reason = "pruned", f"stopped by the search at step {training.step}"
        return TrialResult(
            state, reason, training.step, training.best_step, training.best, training.weights, count_parameters(learner.model),
            clock() - began, learner.fallback,
        )  # fmt: skip


def open_learner(config: TrialConfig, pack: Pack, rows: Tensor, compute: Compute, pool: ThreadPool) -> Learner:
    """Return what does the steps on a device."""
    if compute.device.type == "cpu":
        return CpuLearner(config, pack, rows, compute, pool)
    return GpuLearner(config, pack, rows, compute)


def _go_on(checkpoint: Checkpoint, learner: Learner) -> TrainingState:
    """Bring the learner to where the checkpoint is, if there is one, and return how far that is."""
    saved = checkpoint.load()
    if saved is None:
        return TrainingState()
    training, state = saved
    learner.load(state, training.step)
    return training


def _measure(config: TrialConfig, training: TrainingState, learner: Learner) -> Metrics:
    """Return what the steps since the last evaluation came to. This waits for the device."""
    loss, hits = learner.take_totals()
    steps = training.step - training.last
    rate = learning_rate(config, training.step - 1)
    return {TRAIN_LOSS: loss / steps, TRAIN_ACCURACY: hits / steps, LEARNING_RATE: rate}


def _percent(best: Metrics) -> str:
    return f"{best[OBJECTIVE]:.1%}" if best else "-"
