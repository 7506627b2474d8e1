"""What every command line here shares: one-line errors, exit codes, signals and argument types."""

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, TypeVar, cast

from speaker.common.errors import UserError
from speaker.common.processes import exit_at_once
from speaker.common.signals import STOPPING, Interrupted, install_signal_handlers

BAD_INPUT = 2
N = TypeVar("N", int, float)


class DefaultsThatSaySomething(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of flags, but not that what is not given is None, False or empty."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = any(action.default is each for each in (None, False))
        if says_nothing or action.default == []:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and whose flags cannot be abbreviated."""

    def __init__(self, **options: object) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=DefaultsThatSaySomething,
            **options,  # type: ignore[arg-type]  # argparse's own keywords, passed through
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with exit code 2."""
        self.exit(BAD_INPUT, f"error: {printable(message)}; see {self.prog} --help\n")


def add_storage(flags: argparse._ActionsContainer) -> None:
    """Add the flag of Optuna's database."""
    flags.add_argument(
        "--storage",
        metavar="URL",
        help="Optuna's database; else $OPTUNA_STORAGE, else mlruns/optuna.db",
    )


def add_store_patience(flags: argparse._ActionsContainer) -> None:
    """Add the flag that says how long a failing store is waited for."""
    flags.add_argument(
        "--store-patience",
        type=positive_float,
        default=3600,
        metavar="SECONDS",
        help="how long a store or disk that fails in the middle of it is waited for",
    )


def add_tracking_uri(flags: argparse._ActionsContainer) -> None:
    """Add the flag that says where MLflow keeps its runs."""
    flags.add_argument(
        "--tracking-uri",
        metavar="URL",
        help="MLflow's store; else $MLFLOW_TRACKING_URI, else mlruns/mlflow.db",
    )


def add_device(flags: argparse._ActionsContainer) -> None:
    """Add the flag that says where to compute."""
    flags.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")


def add_precision(flags: argparse._ActionsContainer) -> None:
    """Add the flag that says in which precision matrices are multiplied."""
    flags.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "bf16", "fp16", "fp32"),
        help="auto: the fastest there is",
    )


def plain_name(text: str) -> str:
    """Parse a name that is also fit for a file."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise argparse.ArgumentTypeError(
            f"must be of letters, digits, '.', '_' and '-' alone, 100 at most, but got "
            f"{text[:80]!r}"
        )
    return text


def _number(text: str, kind: Callable[[str], N], words: str) -> N:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {words}, but got {text[:80]!r}") from None


def port(text: str) -> int:
    """Parse a port of this machine."""
    value = _number(text, int, "a whole number")
    if not 1 <= value <= 65_535:
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535, but got {text}")
    return value


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    value = _number(text, int, "a whole number")
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, but got {text}")
    return value


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = _number(text, int, "a whole number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but got {text}")
    return value


def byte_size(text: str) -> int:
    """Parse a number of bytes, such as 2GB, 500MB or 1.5GiB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMGT])(i?)B|B?)", text, re.IGNORECASE)
    size = 0
    if match:
        unit = " KMGT".index((match[2] or " ").upper())
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** unit)
    if size < 1:
        raise argparse.ArgumentTypeError(
            f"must be a size such as 2GB, 500MB or 1.5GiB, but got {text[:80]!r}"
        )
    return size


def positive_float(text: str) -> float:
    """Parse a number above 0."""
    value = _number(text, float, "a number")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, but got {text}")
    return value


def share(text: str) -> float:
    """Parse a part of a whole, from 0 to less than 1."""
    value = _number(text, float, "a number")
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, but got {text}")
    return value


def printable(value: object) -> str:
    """Return a text in one line that no terminal obeys:
    names of files and servers' words come from strangers.
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))


class PrintableOutput:
    """A stream whose lines no terminal obeys, whatever names of files and runs are in them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, of any number of lines."""
        return self._stream.write("\n".join(map(_printable_in_columns, text.split("\n"))))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_closed_streams() -> None:
    """Give a program that was started without output (`>&-`) one that nobody reads: else the next
    file that it opens, a database say, would get what libraries print.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the end


def _printable_in_columns(line: str) -> str:
    return line if line.isprintable() else "\t".join(map(printable, line.split("\t")))


def run_cli(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0, 2 with one line for a UserError,
    or 128 + the signal's number for a signal.
    """
    _open_closed_streams()
    install_signal_handlers()
    exit_at_once()
    try:
        with contextlib.redirect_stdout(cast(TextIO, PrintableOutput(sys.stdout))):
            main()
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except Interrupted as stop:
        print(f"Stopped by {signal.Signals(stop.signum).name}.", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except MemoryError:
        print(
            "error: what this takes must fit into memory, but does not; end other programs and run "
            "the same command again",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)
    except BrokenPipeError:
        # Whoever read our output is gone, and Python would complain about it at exit.
        sys.stderr.close()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        print(
            f"error: {printable(error)}; fix that and run the same command again", file=sys.stderr
        )
        sys.exit(BAD_INPUT)
    for signum in STOPPING:
        # All is done: Python would take one for a failure while it ends.
        signal.signal(signum, signal.SIG_IGN)
    sys.exit(0)
