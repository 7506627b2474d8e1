"""Rank the trials of a study."""

import argparse
from typing import Any

from experiments.verbs.flags import add_study
from speaker.common.cli import Parser, positive_int
from speaker.common.paths import STATE


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser("compare", parents=[tracking], help="rank the trials of a study")
    add_study(flags)
    flags.add_argument("--best", type=positive_int, default=10, help="how many rows to show")
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print a study's table."""
    from experiments.analysis.answer import describe_answer
    from experiments.analysis.leaderboard import ranked, table
    from experiments.tracking.store import existing_store

    rows = ranked(existing_store(arguments.tracking_uri, STATE), arguments.study)
    print(f"{table(rows, arguments.best)}\n\n{describe_answer(rows)}".rstrip())
