"""Flags that several verbs have."""

import argparse
import re
from datetime import UTC, datetime

from speaker.common.cli import plain_name, positive_float, positive_int

MAX_REASON = 500  # letters
FRESH_SEEDS = 5  # of each finalist, if nothing else is asked for


def add_study(flags: argparse.ArgumentParser) -> None:
    """Add the flag that says which study is meant."""
    flags.add_argument("--study", type=plain_name, required=True, metavar="NAME")


def add_alias(flags: argparse.ArgumentParser) -> None:
    """Add the flag that says by which name the model in charge is called."""
    flags.add_argument(
        "--alias", type=_alias, default="champion", metavar="NAME", help="of the model in charge"
    )


def add_engine(flags: argparse._ActionsContainer) -> None:
    """Add the flags of the number of trials at once, and of what trains them."""
    flags.add_argument(
        "--jobs", type=positive_int, default=1, help="how many trials are trained at once"
    )
    flags.add_argument(
        "--engine",
        choices=("inline", "processes", "ray"),
        help="what trains them: this process, processes of this machine, or tasks of a Ray cluster "
        "(pip install -r requirements-ray.txt); if not given, inline for one job, else processes",
    )
    flags.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="of the Ray cluster to which this machine belongs, or auto; if not given, one is made "
        "of this machine alone",
    )
    flags.add_argument(
        "--gpus-per-trial",
        type=_part,
        metavar="PART",
        help="of a GPU, for each trial on a Ray cluster, 0.5 say; if not given, as much as there "
        "is for each of --jobs",
    )


def _part(text: str) -> float:
    """Parse a part of a GPU: above 0, at most the whole."""
    value = positive_float(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be at most 1, but got {text}")
    return value


def reason(text: str) -> str:
    """Parse why something is done: some words, which become one line."""
    words = " ".join(text.split())
    if not any(letter.isalnum() for letter in words) or len(words) > MAX_REASON:
        raise argparse.ArgumentTypeError(
            f"must be a reason in words, of at most {MAX_REASON} letters, but got {words[:80]!r}"
        )
    return words


def now() -> str:
    """Return the date and time as the registry keeps it."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _alias(text: str) -> str:
    """Parse an alias: a name that is no version's and no run's."""
    if re.fullmatch(r"\d+|v\d+|latest|[0-9a-f]{32}", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(
            f"must be no number, no v1, no latest and no run's id, but got {text!r}; choose a name "
            "such as challenger"
        )
    return plain_name(text)
