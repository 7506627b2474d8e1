"""Write a study's page."""

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments.verbs.flags import add_study
from speaker.common.cli import Parser, printable
from speaker.common.errors import first_line
from speaker.common.paths import STATE, validate_output_path, write_output


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "report", parents=[tracking], help="write a study's page: what won, and is that real"
    )
    add_study(flags)
    flags.add_argument(
        "--out", type=Path, metavar="FILE", help="HTML to write; NAME.html if not given"
    )
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write a study's page into a file, and keep it with the study's run."""
    from experiments.report.page import BEGINNING
    from experiments.report.publish import keep, make_report
    from experiments.tracking.run import STORE_ERRORS
    from experiments.tracking.store import existing_store

    path = arguments.out or Path(f"{arguments.study}.html")
    validate_output_path(path, begins=BEGINNING.encode())
    store = existing_store(arguments.tracking_uri, STATE)
    report = make_report(store, arguments.study)
    write_output(path, report.page.encode())
    print(f"Wrote {printable(path)}.")
    try:
        keep(store, report)
    except STORE_ERRORS as error:
        print(
            f"warning: {store.shown} did not take it ({printable(first_line(error))})",
            file=sys.stderr,
        )
