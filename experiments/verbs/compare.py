"""Rank the trials of a study, set runs side by side, or list all studies."""

import argparse
import shutil
import sys
from typing import TYPE_CHECKING, Any

from experiments.analysis.formats import FORMATS
from speaker.common.cli import Parser, plain_name, positive_int, printable
from speaker.common.errors import UserError
from speaker.common.paths import STATE

if TYPE_CHECKING:
    from experiments.tracking.store import TrackingStore

BEST = 10


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "compare",
        parents=[tracking],
        help="rank the trials of a study, set runs side by side, or list all studies",
    )
    flags.add_argument(
        "runs", nargs="*", metavar="RUN", help="ids of runs, or with --study numbers of trials"
    )
    flags.add_argument(
        "--study", type=plain_name, metavar="NAME", help="without it and without runs: all studies"
    )
    flags.add_argument(
        "--best", type=positive_int, metavar="N", help=f"how many trials of a study; {BEST}"
    )
    formats = flags.add_mutually_exclusive_group()
    for name in FORMATS:
        formats.add_argument(
            f"--{name}",
            dest="format",
            action="store_const",
            const=name,
            help="all fields, for other programs" if name != "markdown" else "the same, to paste",
        )
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print a study's table, runs side by side, or all studies."""
    from experiments.tracking.store import existing_store

    if arguments.best and (arguments.runs or not arguments.study):
        raise UserError(
            f"--best is for the trials of a study, but got {arguments.best} without --study alone; "
            "leave it out"
        )
    store = existing_store(arguments.tracking_uri, STATE)
    if arguments.runs:
        print_runs(store, arguments.runs, arguments.study, arguments.format)
    elif arguments.study:
        print_study(store, arguments.study, arguments.best or BEST, arguments.format)
    else:
        print_studies(store, arguments.format)


def print_study(store: "TrackingStore", study: str, best: int, form: str | None) -> None:
    """Print the best trials of a study, and what they say."""
    from experiments.analysis.answer import describe_answer
    from experiments.analysis.formats import formatted
    from experiments.analysis.leaderboard import ranked, validate_rankable
    from experiments.analysis.table import records, shown, table
    from experiments.registry.versions import describe_broken

    rows = ranked(store, study)
    validate_rankable(rows, study)
    if form:
        print(formatted(records(shown(rows, best)), form))
        print(describe_answer(rows), file=sys.stderr)
    else:
        print(f"{table(rows, best, width())}\n\n{describe_answer(rows)}".rstrip())
    for line in describe_broken(store, {row.run_id for row in rows}):
        print(printable(line), file=sys.stderr)


def print_runs(
    store: "TrackingStore", words: list[str], study: str | None, form: str | None
) -> None:
    """Print runs side by side."""
    from experiments.analysis.formats import formatted
    from experiments.analysis.side_by_side import describe_runs, find_rows, numbered, why_not_ranked
    from experiments.analysis.table import records

    rows = find_rows(store, words, study)
    if form:
        print(formatted(records(numbered(rows)), form))
        print(why_not_ranked(rows), end="", file=sys.stderr)
    else:
        print(describe_runs(rows, width()))


def print_studies(store: "TrackingStore", form: str | None) -> None:
    """Print all studies, a line each."""
    from experiments.analysis.formats import formatted
    from experiments.analysis.studies import all_studies, describe_studies, study_records

    studies = all_studies(store)
    if form:
        print(formatted(study_records(studies), form))
    else:
        print(describe_studies(studies, width()))


def width() -> int:
    """Return how long a line may be: as the terminal is wide; 100 characters in a file."""
    return max(79, shutil.get_terminal_size((100, 24)).columns)
