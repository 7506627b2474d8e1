"""A look ahead: what points cost on a device before a search begins,
and what to fall back to where they fail.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from speaker.common.cuda import is_out_of_memory, noticing_loss, release_memory
from speaker.common.devices import Compute, ThreadPool, configure_process
from speaker.common.errors import DeviceLostError, UserError, first_line
from speaker.config import TrialConfig
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.model.classifier import count_operations, count_parameters
from speaker.training.evaluation import Evaluator
from speaker.training.learner import Learner
from speaker.training.train import open_learner

TIMED_S, MAX_TIMED_STEPS = 0.4, 50  # of the steps that are timed
WEIGHT_BYTES = 4  # they are kept in float32


@dataclass(frozen=True)
class Cost:
    """What a training of a point costs, by a few of its steps and batches."""

    config: TrialConfig
    step: float  # seconds
    evaluation: float  # seconds
    memory: int  # bytes: the most that this process has held
    fallback: str = ""  # why it was computed in a slower way than its device offers
    disk: int = 0  # bytes: of the weights that a trial leaves

    def seconds(self) -> float:
        """Return the time of the training, were it not stopped."""
        return (
            self.config.steps * self.step
            + -(-self.config.steps // self.config.valid_every) * self.evaluation
        )


def measure(config: TrialConfig, pack: Pack, protocol: Protocol, compute: Compute) -> Cost:
    """Do some steps of a point and score some batches, the longest among them on a GPU,
    and forget what was learnt.

    The pack lies on the device. Raises what a training would.
    """
    rows, _ = protocol.split(pack)
    on_cuda = compute.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(compute.device)
    with (
        noticing_loss(compute.device),
        ThreadPool(compute.shards) as pool,
        open_learner(config, pack, rows, compute, pool) as learner,
    ):
        step = _time_steps(learner)
        evaluation = Evaluator(pack, protocol, pool).rehearse(learner.model, learner.loss)
        memory = torch.cuda.max_memory_reserved(compute.device) if on_cuda else _peak_bytes()
        disk = WEIGHT_BYTES * count_parameters(learner.model)
        return Cost(config, step, evaluation, memory, learner.fallback, disk)


def find_working_compute(
    points: Sequence[TrialConfig],
    put: Callable[[Compute], Pack],
    protocol: Protocol,
    compute: Compute,
) -> tuple[Compute, Pack, list[Cost]]:
    """Find out what to compute with, from what was asked for down to what works,
    and what points cost there.

    `put` puts the pack on a device. A point that does not fit into memory has no cost in the list.
    Raises UserError when nothing works or no point fits, and DeviceLostError. What failed stands
    among the result's fallbacks.
    """
    reasons = list(compute.fallbacks)
    for candidate in (compute, *compute.lesser()):
        release_memory()  # of what failed
        tried = replace(candidate, fallbacks=tuple(reasons))
        try:
            with noticing_loss(tried.device):
                return tried, *_attempt(points, put, protocol, tried)
        except DeviceLostError as error:
            # PyTorch asks the card even for what it computes on the CPU, so this process can do
            # nothing more.
            tried_before = "".join(f"; {reason}" for reason in reasons)
            raise DeviceLostError(
                f"{error} before the first trial{tried_before}; try --device cpu"
            ) from error
        except (RuntimeError, UserError) as error:
            if tried.device.type == "cpu":
                raise
            steps = "captured" if tried.graph else "plain"
            reasons.append(
                f"{tried.device}, {tried.precision_name}, {steps} steps failed: {first_line(error)}"
            )
    raise UserError(
        f"--device {compute.device} must do a step, but: {'; '.join(reasons)}; use --device cpu"
    )


def _attempt(
    points: Sequence[TrialConfig],
    put: Callable[[Compute], Pack],
    protocol: Protocol,
    compute: Compute,
) -> tuple[Pack, list[Cost]]:
    configure_process(compute)
    pack = put(compute)
    costs = []
    for point in points:
        cost = _measure_if_it_fits(point, pack, protocol, compute)
        if cost and cost.fallback:
            raise RuntimeError(cost.fallback)
        costs += [cost] if cost else []
    if not costs:
        raise UserError(
            f"the smallest point must fit into the memory of {compute.device}, but does not; free "
            "some"
        )
    return pack, costs


def forecast(
    points: Sequence[TrialConfig],
    costs: Sequence[Cost],
    part: Callable[[Cost], float] = Cost.seconds,
) -> float:
    """Return the seconds, or another part of the cost, of a training of one of many points on
    average, between what few of them cost.
    """
    few = sorted((count_operations(cost.config), part(cost)) for cost in costs)
    (least, shortest), (most, longest) = few[0], few[-1]
    slope = (longest - shortest) / max(most - least, 1.0)
    return sum(shortest + slope * (count_operations(point) - least) for point in points) / len(
        points
    )


def forecast_trials(
    points: Sequence[TrialConfig],
    costs: Sequence[Cost],
    trials: int,
    first: Sequence[TrialConfig] = (),
    part: Callable[[Cost], float] = Cost.seconds,
) -> float:
    """Return the seconds, or another part of the cost, of so many trials, none stopped early: of
    the `first` ones, whose points are known, and of others out of `points`.
    """
    others = trials - len(first)
    known = sum(forecast([point], costs, part) for point in first)
    return known + others * forecast(points, costs, part)


def at_once(compute: Compute, jobs: int) -> int:
    """Return by how much `jobs` are faster than one: they have a CPU's cores to themselves, and
    share a GPU.
    """
    return jobs if compute.device.type == "cpu" else 1


def describe(
    points: Sequence[TrialConfig],
    costs: Sequence[Cost],
    trials: int,
    compute: Compute,
    jobs: int = 1,
    first: Sequence[TrialConfig] = (),
) -> str:
    """Return in a line what so many trials are to cost, `jobs` at once: see `forecast_trials`.

    `points` are in the order of their size, and the largest of them may have no cost.
    """
    smallest, largest = costs[0], costs[-1]
    step = f"{1000 * smallest.step:.3g} ms ({smallest.config.label()})"
    if largest is not smallest:
        step += f" to {1000 * largest.step:.3g} ms ({largest.config.label()})"
    seconds = forecast_trials(points, costs, trials, first) / at_once(compute, jobs)
    disk = forecast_trials(points, costs, trials, first, lambda cost: cost.disk)
    steps = f"A step takes {step}{', captured as one CUDA graph' * compute.graph}"
    of_each = " for each job, of which they share the data," * (jobs > 1)
    memory = f"{largest.memory / 2**30:.1f} GiB of memory{of_each}"
    count = f"{trials} trials take" if trials > 1 else "1 trial takes"
    line = (
        f"{steps}; {count} about {_in_words(seconds)}, where none is stopped early, {memory} and "
        f"{disk / 2**20:,.0f} MiB of disk for the weights."
    )
    if largest.config != points[-1]:
        line += f" {points[-1].label()} does not fit into the memory: such trials are infeasible."
    return line


def describe_first(
    points: Sequence[TrialConfig],
    costs: Sequence[Cost],
    trials: int,
    first: Sequence[TrialConfig],
    least: float,
) -> str:
    """Return what each of the `first` points takes of so many trials' time, and all of them
    together, when the others train the whole budget or the `least` fraction of it.
    """
    each = ", ".join(
        f"{point.label()} for about {_in_words(forecast([point], costs))}" for point in first
    )
    known = forecast_trials(points, costs, len(first), first)
    others = forecast_trials(points, costs, trials, first) - known
    low, high = (round(100 * known / (known + part * others)) for part in (1, least))
    stopped = f" where no other is stopped early, {high} % where all are" * (low != high)
    return f"{each}, {low} % of the time{stopped}."


def _in_words(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1 else f"{seconds:.1g} seconds"


def _measure_if_it_fits(
    config: TrialConfig, pack: Pack, protocol: Protocol, compute: Compute
) -> Cost | None:
    try:
        return measure(config, pack, protocol, compute)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release_memory()
    return None


def _time_steps(learner: Learner) -> float:
    """Return the seconds of a step."""

    def run(first: int, count: int) -> float:
        began = time.perf_counter()
        for number in range(first, first + count):
            learner.step(number)
        learner.peek_loss()  # waits for the device
        return time.perf_counter() - began

    run(0, 1)  # libraries settle on their kernels
    count = min(MAX_TIMED_STEPS, max(1, int(TIMED_S / run(1, 1))))
    return run(2, count) / count


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
