import os
import signal
from collections.abc import Iterator

import pytest

from speaker import cli
from speaker.cli import Interrupted, interruptible, printable, uninterrupted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Install the program's handlers, as run_cli does, and put the others back."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for signum in before:
        signal.signal(signum, cli._interrupt)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum: signal.Signals) -> None:
    os.kill(os.getpid(), signum)


def test_a_signal_raises_at_once_and_only_the_first() -> None:
    with pytest.raises(Interrupted) as caught:
        send(signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM
    send(signal.SIGTERM)
    send(signal.SIGINT)


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    reached = []
    with pytest.raises(Interrupted):
        interrupt_within(reached)
    assert reached == ["inside", "nested"]


def interrupt_within(reached: list[str]) -> None:
    with uninterrupted():
        send(signal.SIGINT)
        reached.append("inside")
        with uninterrupted():
            reached.append("nested")
    reached.append("behind")


def test_a_signal_that_waited_comes_before_the_interruptible_part() -> None:
    with pytest.raises(Interrupted), uninterrupted():
        send(signal.SIGINT)
        with interruptible():
            pytest.fail("it should have been interrupted")


def test_a_signal_comes_through_in_the_interruptible_part_and_tidying_up_goes_on() -> None:
    tidied = []
    with pytest.raises(Interrupted), uninterrupted():
        try:
            with interruptible():
                send(signal.SIGTERM)
                pytest.fail("it should have been interrupted")
        finally:
            send(signal.SIGTERM)
            tidied.append(True)
    assert tidied == [True]


def test_no_terminal_obeys_an_error() -> None:
    assert printable("a\n\x1b[31m\u202eb é\udcff") == r"a\n\x1b[31m\u202eb é\udcff"
