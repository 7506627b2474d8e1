"""Trials at once on one machine: processes that each work at the study,
started and ended by the one that was called.

Each is a worker like any other: who dies leaves its trial to the others. They share the pack's
memory and nothing else.
"""

import contextlib
import multiprocessing
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import cast

from tqdm import tqdm

from experiments.study.progress import STEPS_FORMAT, Progress
from experiments.study.search import RESUME, WorkerSpec
from experiments.study.trial import STORE_FAILURES, run_trial
from experiments.tracked_training import explaining_failures
from speaker.common.cuda import noticing_loss
from speaker.common.devices import configure_process
from speaker.common.errors import DeviceLostError, UserError, first_line
from speaker.common.processes import exit_with_parent, shielded_from_interrupts
from speaker.common.signals import (
    Interrupted,
    install_signal_handlers,
    interruptible,
    uninterrupted,
)
from speaker.config import TrialConfig
from speaker.training.train import TrialResult

LOOK_UP_S = 1.0
PATIENCE_S = 30  # with workers that are told to stop: a store may be slow


@dataclass(frozen=True)
class Moved:
    """A worker's bar as it looks now."""

    text: str


@dataclass(frozen=True)
class Ended:
    """A trial has ended. Its weights are in the store, not here."""

    number: int
    config: TrialConfig
    result: TrialResult


@dataclass(frozen=True)
class Failed:
    """A worker's last word: why it cannot go on."""

    reason: str
    is_bug: bool = False
    is_lost: bool = False  # its device is, for this process alone


def run_workers(spec: WorkerSpec, jobs: int, progress: Progress) -> None:
    """Work at a study with `jobs` processes until it is finished or time is up,
    and show what they say.

    One that fails ends them all: UserError says why, or RuntimeError where that is a bug. One that
    is killed, or loses its device, does not; UserError when all are.
    """
    with _started(spec, jobs) as workers:
        places = {connection: place for place, connection in enumerate(workers)}
        while workers:
            with interruptible():
                # For a signal that did not end the wait.
                ready = cast("list[Connection]", wait(workers, LOOK_UP_S))
            progress.tick()
            for connection in ready:
                bar = progress.running[places[connection]]
                try:
                    said: Moved | Ended | Failed = connection.recv()
                except (EOFError, ConnectionResetError):
                    bar.set_description_str("")
                    _reap(workers.pop(connection), len(workers))
                    continue
                if isinstance(said, Moved):
                    bar.set_description_str(said.text)
                elif isinstance(said, Ended):
                    bar.set_description_str("")
                    progress.ended(said.number, said.config, said.result)
                elif said.is_bug:
                    raise RuntimeError(f"a worker met a bug:\n{said.reason}")
                elif said.is_lost:
                    _reap(workers.pop(connection), len(workers), said.reason)
                else:
                    raise UserError(said.reason)


@contextlib.contextmanager
def _started(spec: WorkerSpec, jobs: int) -> Iterator[dict[Connection, SpawnProcess]]:
    """Start workers, and stop at the end of a `with` block those that still run;
    their trials can be resumed.
    """
    spawn = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for number in range(jobs):
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(
                target=_work, args=(_pack(spec), theirs), name=f"worker {number + 1}"
            )
            with shielded_from_interrupts():
                process.start()
            theirs.close()
            workers[ours] = process
        yield workers
    finally:
        for process in workers.values():
            process.terminate()
        deadline = time.monotonic() + PATIENCE_S
        for process in workers.values():
            process.join(max(0, deadline - time.monotonic()))
            # One that hangs or was stopped: what it did can be resumed all the same.
            process.kill()
            process.join()


def _pack(spec: WorkerSpec) -> bytes:
    """Return a spec as bytes, for one worker: what lies on a card is shared.

    Raises UserError where it cannot be.
    """
    try:
        return bytes(ForkingPickler.dumps(spec))
    except RuntimeError as error:
        raise _cannot_share(error) from error


def _unpack(spec: bytes) -> WorkerSpec:
    """Return the spec that came as bytes.

    Raises UserError where this process does not get what lies on a card.
    """
    try:
        return cast("WorkerSpec", pickle.loads(spec))  # noqa: S301  # our own parent's
    except RuntimeError as error:
        raise _cannot_share(error) from error


def _cannot_share(error: RuntimeError) -> UserError:
    return UserError(
        f"--jobs must share the GPU's memory, but cannot here ({first_line(error)}); use --jobs 1"
    )


def _reap(process: SpawnProcess, others: int, lost: str = "") -> None:
    """Wait for a worker that says no more to end; `lost` says how it lost its device.

    Raises UserError when it was killed and no other is left, DeviceLostError when it lost its
    device.
    """
    process.join(PATIENCE_S)
    process.kill()  # one whose card is lost may hang
    process.join()
    code = process.exitcode or 0
    if lost:
        if not others:
            raise DeviceLostError(lost)
        tqdm.write(f"{process.name} ended: {lost}; the other {others} go on")
    elif code:
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if not others:
            raise UserError(
                f"one worker must live to the end, but all were killed, {process.name} by {end}; "
                "if memory is short, use fewer --jobs; run the same command to resume"
            )
        tqdm.write(f"{process.name} was killed ({end}); the other {others} go on")


def _work(packed: bytes, connection: Connection) -> None:
    """Work at a study until it is finished, and tell the parent how that goes."""
    exit_with_parent()
    install_signal_handlers()
    # Instead of one between processes, which a kill would leave behind.
    tqdm.set_lock(threading.RLock())
    try:
        spec = _unpack(packed)
        with noticing_loss(spec.context.compute.device):
            configure_process(spec.context.compute)
        worker = spec.open()
        explained = explaining_failures(RESUME, STORE_FAILURES)
        with (
            explained,
            uninterrupted(),
            RemoteBar(
                connection, unit="step", leave=False, disable=None, bar_format=STEPS_FORMAT
            ) as bar,
        ):
            for trial in worker.trials():
                if ended := run_trial(worker.shared, trial, bar):
                    config, result = ended
                    connection.send(Ended(trial.number, config, replace(result, weights={})))
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
    except UserError as error:
        connection.send(Failed(str(error), is_lost=isinstance(error, DeviceLostError)))
    except Exception:
        connection.send(Failed(traceback.format_exc(), is_bug=True))


class RemoteBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar that is shown by another process."""

    def __init__(self, connection: Connection, **options: object) -> None:
        self._connection = connection
        super().__init__(**options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002  # tqdm's names
        """Send what would be shown."""
        self._connection.send(Moved(str(self) if msg is None else msg))
