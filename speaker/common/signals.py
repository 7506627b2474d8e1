"""Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes: raised once, and put off while something
must not be cut.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """One of the signals STOPPING arrived; `signum` tells which."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def install_signal_handlers() -> None:
    """Let the signals STOPPING raise Interrupted in this process, the first time that one comes.

    SIGHUP is left as it is where it is ignored: that is what `nohup` does.
    """
    for signum in STOPPING:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt_again)
    sys.unraisablehook = _keep_interruption


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off these signals to the end of a `with` block, or to an `interruptible` part of it.

    A database call that is cut in its middle keeps its lock, and what tidies up afterwards would
    wait for that.
    """
    with _deferring(True):
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let these signals through in a `with` block, those that were put off first."""
    with _deferring(False):
        yield


@dataclass
class _Signals:
    """What the signal handler must know: whether to wait, and what has come meanwhile."""

    deferred: bool = False
    pending: int | None = None
    seen: bool = False  # a second signal must not break the tidying up after the first


_signals = _Signals()


@contextlib.contextmanager
def _deferring(deferred: bool) -> Iterator[None]:
    before = _signals.deferred
    _signals.deferred = deferred
    try:
        _raise_pending()
        yield
    finally:
        _signals.deferred = before
        _raise_pending()


def _raise_pending() -> None:
    signum = _signals.pending
    if signum is not None and not _signals.deferred:
        _signals.pending = None
        raise Interrupted(signum)


def _interrupt(signum: int, _frame: FrameType | None) -> None:
    """Raise once, or when it may."""
    if signum == signal.SIGHUP:
        _leave_terminal()
    if not _signals.seen:
        _signals.seen, _signals.pending = True, signum
        _raise_pending()


def _leave_terminal() -> None:
    """Write nothing more to a terminal that closes: each line would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        try:
            is_closing = os.isatty(stream)
            os.write(stream, b"")
        except OSError:
            is_closing = True
        if is_closing:
            os.dup2(nowhere, stream)
    os.close(nowhere)


def _interrupt_again(_signum: int, _frame: FrameType | None) -> None:
    _raise_pending()


def _keep_interruption(lost: "sys.UnraisableHookArgs") -> None:
    """Raise an interruption again a moment later: where it struck in a destructor or a callback,
    Python drops it.
    """
    if isinstance(lost.exc_value, Interrupted):
        _signals.pending = lost.exc_value.signum
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(lost)
