"""The engine of one machine: processes that each work at the study.

Each is a worker like any other: who dies leaves its trial to the others. They share the pack's
memory and nothing else.
"""

import multiprocessing
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import cast

from tqdm import tqdm

from experiments.engines.engine import Audience, Crew, Engine, Failed, Gone, Said, supervise
from experiments.engines.worker import work_apart
from experiments.study.search import StudyWorker, WorkerSpec
from speaker.common.errors import UserError, first_line
from speaker.common.processes import exit_at_once, exit_with_parent, shielded_from_interrupts
from speaker.common.signals import Interrupted, install_signal_handlers

PATIENCE_S = 30  # with workers that are told to stop: a store may be slow


class Processes(Engine):
    """Work in processes of this machine."""

    def run(self, worker: StudyWorker, jobs: int, audience: Audience) -> None:
        """Work at a study: see Engine."""
        supervise(ProcessCrew(worker.spec), jobs, audience)


class ProcessCrew(Crew):
    """Processes, each with a pipe to this one."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._processes: dict[Connection, tuple[int, SpawnProcess]] = {}

    def start(self, place: int) -> None:
        """Start a worker that neither Ctrl-C nor a closed terminal reaches."""
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(
            target=_work, args=(_pack(self._spec), theirs), name=f"worker {place + 1}"
        )
        with shielded_from_interrupts():
            process.start()
        theirs.close()
        self._processes[ours] = place, process

    def listen(self, seconds: float) -> Iterator[tuple[int, Said | Failed | Gone]]:
        """Wait until a worker says something, and return that."""
        ready = cast("list[Connection]", wait(self._processes, seconds))
        return map(self._receive, ready)

    def stop(self) -> None:
        """End the workers, as SIGTERM does."""
        processes = [process for _, process in self._processes.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + PATIENCE_S
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
            # One that hangs or was stopped: what it did can be resumed all the same.
            process.kill()
            process.join()

    def _receive(self, connection: Connection) -> tuple[int, Said | Failed | Gone]:
        place, process = self._processes[connection]
        try:
            return place, connection.recv()
        except (EOFError, ConnectionResetError):
            del self._processes[connection]
        process.join(PATIENCE_S)
        process.kill()  # one whose card is lost may hang
        process.join()
        return place, Gone(_describe_exit(process.exitcode or 0))


def _describe_exit(code: int) -> str:
    """Return how a process was killed; nothing for one that ended by itself."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}" * bool(code)


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


def _work(packed: bytes, connection: Connection) -> None:
    """Work at a study until it is finished, and tell the parent how that goes."""
    exit_with_parent()
    exit_at_once()
    install_signal_handlers()
    # Instead of one between processes, which a kill would leave behind.
    tqdm.set_lock(threading.RLock())

    try:
        work_apart(lambda: _unpack(packed), connection.send)
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
