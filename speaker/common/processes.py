"""Processes of our own: Ctrl-C, or a terminal that closes, is for their parent alone, and they are
gone when it is.
"""

import atexit
import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

from speaker.common.signals import uninterrupted


@contextlib.contextmanager
def shielded_from_interrupts() -> Iterator[None]:
    """Start processes that neither Ctrl-C nor a closed terminal reaches, from their first moment:
    it is for their parent to end them.
    """
    # When the first process starts this one, it lets signals through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        with uninterrupted():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_at_once() -> None:
    """Let this process end, when it does, without a last search for garbage: among the objects of
    PyTorch, MLflow and a training that takes seconds.
    """
    atexit.register(gc.freeze)


def exit_with_parent() -> None:
    """End this process with its parent, however that ends.

    What a worker had not finished can be resumed.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  # true of any worker

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
