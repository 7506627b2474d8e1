import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from speaker.common.cli import Parser, printable, run_cli
from speaker.common.errors import UserError
from speaker.common.signals import (
    Interrupted,
    install_signal_handlers,
    interruptible,
    uninterrupted,
)
from tests.helpers import environment

pytestmark = pytest.mark.usefixtures("handlers")


def send(signum: signal.Signals) -> None:
    os.kill(os.getpid(), signum)


def test_a_signal_raises_at_once_and_only_the_first() -> None:
    with pytest.raises(Interrupted) as caught:
        send(signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM
    send(signal.SIGTERM)
    send(signal.SIGINT)


def test_a_closing_terminal_is_a_signal_too_unless_it_is_ignored() -> None:
    with pytest.raises(Interrupted) as caught:
        send(signal.SIGHUP)
    assert caught.value.signum == signal.SIGHUP
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    install_signal_handlers()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    reached: list[str] = []
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


class Struck:
    """Is hit by a signal while it is being destroyed, where Python drops what is raised."""

    def __del__(self) -> None:
        send(signal.SIGTERM)


def test_a_signal_that_strikes_in_a_destructor_is_not_lost() -> None:
    with pytest.raises(Interrupted):
        outlive(Struck())


def outlive(struck: Struck) -> None:
    del struck
    time.sleep(5)
    pytest.fail("it should have been interrupted")


def test_both_signals_at_once_are_one() -> None:
    with pytest.raises(Interrupted):
        send_both()
    time.sleep(0.01)


def send_both() -> None:
    """Send both to this thread: another one, if there are some, would not block them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.pthread_kill(threading.get_ident(), signum)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a\nb is no file"), r"error: a\nb is no file"),
        (
            FileNotFoundError(2, "No such file", "a\nb"),
            r"error: [Errno 2] No such file: 'a\nb'; fix that and run the same command again",
        ),
        (
            MemoryError(),
            "error: what this takes must fit into memory, but does not; end other programs and "
            "run the same command again",
        ),
    ],
)
def test_an_error_is_one_line_whatever_it_quotes(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_cli(fail)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_a_wrong_flag_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Parser(prog="x").parse_args(["--a\nb"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "error: unrecognized arguments: --a\\nb; see x --help\n"


def test_no_terminal_obeys_what_a_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    def show() -> None:
        print("rank\tname é\nbest\t\x1b[2J\u202eb\rc\udcff", flush=True)

    with pytest.raises(SystemExit) as ended:
        run_cli(show)
    assert ended.value.code == 0
    assert capsys.readouterr().out == "rank\tname é\nbest\t\\x1b[2J\\u202eb\\rc\\udcff\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_whose_output_is_closed_runs_to_its_end(tmp_path: Path, closed: str) -> None:
    """What it opens must not get what is printed."""
    code = (
        "import sys; from pathlib import Path; from speaker.common.cli import run_cli\n"
        "def main():\n"
        "    with Path('opened').open('w', buffering=1) as stream:\n"
        "        print('said'); print('warned', file=sys.stderr); stream.write('kept')\n"
        "run_cli(main)"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment(), check=False)
    assert done.returncode == 0
    assert (tmp_path / "opened").read_text() == "kept"


def test_no_terminal_obeys_an_error() -> None:
    assert printable("a\n\x1b[31m\u202eb é\udcff") == r"a\n\x1b[31m\u202eb é\udcff"
