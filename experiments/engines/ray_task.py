"""What a worker is on a Ray cluster: one task, which runs in a process of its own."""

import contextlib
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from experiments.context import TrainingContext
from experiments.engines.engine import Failed, Said
from experiments.engines.parcel import Arrays, Parcel, unseal
from experiments.engines.placement import Node, refuse_files
from experiments.engines.worker import work_apart
from experiments.study.search import WorkerSpec
from speaker.common.cuda import CONTEXT_BYTES, noticing_loss
from speaker.common.errors import UserError
from speaker.common.signals import (
    STOPPING,
    Interrupted,
    install_signal_handlers,
    uninterrupted,
)

ANSWER_S = 10  # for a letter; one that gets lost is missing on the screen alone


@dataclass(frozen=True)
class Task:
    """One worker's work."""

    place: int
    parcel: Any  # a Parcel, as a reference
    arrays: Any  # of the pack, as a reference
    mailbox: Any
    gpus: float  # its share of a GPU; 0 on a CPU
    driver: str  # the address of the machine that the search was started on


def work_in_task(task: Task) -> Failed | str:
    """Work at a study until it is finished; return why that cannot go on, or by which signal it was
    ended, or nothing.
    """
    last: list[Failed] = []
    tqdm.set_lock(threading.RLock())
    with _handling_signals():
        try:
            work_apart(partial(_open, task), _sender(task, last.append))
        except Interrupted as stop:
            return signal.Signals(stop.signum).name
    return last[0] if last else ""


def _open(task: Task) -> WorkerSpec:
    """Return the search, its pack on this worker's device.

    Raises UserError for a store or a device that does not serve.
    """
    import ray

    parcel: Parcel = _get(task.parcel)
    address = ray.util.get_node_ip_address()
    spec = unseal(parcel, partial(_fetch, task, address))
    refuse_files(spec, [Node(address, 0, 0, is_here=address == task.driver)])
    return replace(spec, context=_settle(spec.context, task.gpus))


def _fetch(task: Task, address: str) -> Arrays:
    """Return the pack's arrays, mapped from this machine's part of the object store.

    Raises UserError where they were not sent: the machine has just come.
    """
    if task.arrays is None:
        raise UserError(
            f"a machine of the cluster must have the pack, but {address} joined after it was sent; "
            "run the same command to resume"
        )
    return _get(task.arrays)


def _get(reference: Any, seconds: float | None = None) -> Any:
    """Return what a reference stands for, as soon as it is there."""
    import ray

    # A task whose main thread waits loses its cores to another one, and does not get them back.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(ray.get, reference, timeout=seconds).result()


def _settle(context: TrainingContext, gpus: float) -> TrainingContext:
    """Return a context on this machine's device, of which Ray shows a worker those that it may use;
    the first of them is its own.
    """
    compute = context.compute
    if compute.device.type == "cuda":
        device = torch.device("cuda", 0)
        with noticing_loss(device):
            memory = torch.cuda.get_device_properties(device).total_memory
        share = gpus - CONTEXT_BYTES / memory if gpus < 1 else 1.0
        compute = replace(compute, device=device, memory_fraction=share)
    with noticing_loss(compute.device):
        pack = context.pack.to(compute.device, compute.precision)
    facts = {**context.provenance, "device": compute.describe()}
    return replace(context, pack=pack, compute=compute, provenance=facts)


def _sender(task: Task, keep: Callable[[Failed], object]) -> Callable[[Said | Failed], None]:
    """Return what sends a worker's words to the mailbox; its last one, which must not get lost, is
    kept.
    """
    import ray

    def send(said: Said | Failed) -> None:
        if isinstance(said, Failed):
            keep(said)
            return
        with uninterrupted(), contextlib.suppress(ray.exceptions.RayError):
            words = task.mailbox.put.remote(task.place, pickle.dumps(said))
            _get(words, ANSWER_S)

    return send


@contextlib.contextmanager
def _handling_signals() -> Iterator[None]:
    """Take the signals that end a worker, and give them back to Ray."""
    before = {signum: signal.getsignal(signum) for signum in (*STOPPING, signal.SIGALRM)}
    hook = sys.unraisablehook
    install_signal_handlers()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for signum, handler in before.items():
            if handler is not None:
                signal.signal(signum, handler)
