"""Say what is missing, doubled, stranded, damaged or left over, and put it right."""

import argparse
import shutil
import sys
from typing import Any

from speaker.common.cli import Parser, add_storage, plain_name, printable
from speaker.common.paths import STATE

WIDTH = 110  # of a line where there is no terminal, in characters


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "doctor",
        parents=[tracking],
        help="compare both stores and what lies beside them; exit code 1 where faults remain",
    )
    flags.add_argument("--study", type=plain_name, metavar="NAME", help="look at this one alone")
    flags.add_argument(
        "--mend", action="store_true", help="put right what can be without losing anything"
    )
    flags.add_argument(
        "--rerun-failed",
        action="store_true",
        help="let the next search of a study run its failed trials again, each in another's place",
    )
    add_storage(flags)
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table of what was found, and mend if asked to; exit code 1 where faults remain."""
    from experiments.study.storage import default_storage
    from experiments.study.trial import STORE_FAILURES
    from experiments.tracked_training import explaining_failures
    from experiments.tracking.store import existing_store
    from experiments.upkeep.doctor.checks import examine, mend
    from experiments.upkeep.doctor.findings import describe
    from experiments.upkeep.doctor.reruns import rerun_failed
    from experiments.upkeep.doctor.survey import Place

    store = existing_store(arguments.tracking_uri, STATE)
    place = Place(store, arguments.storage or default_storage(STATE), STATE)
    with explaining_failures("run the same command again", STORE_FAILURES):
        if arguments.mend:
            mended, left = mend(place, arguments.study)
        else:
            mended, left = [], examine(place, arguments.study)
        lines = rerun_failed(place, arguments.study) if arguments.rerun_failed else []
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    print(describe(mended, left, width))
    for line in lines:
        print(printable(line))
    if any(each.is_fault for each in left):
        sys.exit(1)
