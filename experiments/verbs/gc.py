"""Remove what deleted runs and studies have left."""

import argparse
from typing import Any

from speaker.common.cli import Parser, add_storage
from speaker.common.paths import STATE


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "gc",
        parents=[tracking],
        help="list what deleted runs and studies have left, and with --delete remove it",
    )
    flags.add_argument("--delete", action="store_true", help="for good; without it, all stays")
    add_storage(flags)
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """List leftovers, and remove them if asked to."""
    from experiments.study.storage import default_storage
    from experiments.study.trial import STORE_FAILURES
    from experiments.tracked_training import explaining_failures
    from experiments.tracking.store import existing_store
    from experiments.upkeep.cleanup import describe_leftovers, find_leftovers

    store = existing_store(arguments.tracking_uri, STATE)
    storage = arguments.storage or default_storage(STATE)
    with explaining_failures("run the same command again", STORE_FAILURES):
        found = find_leftovers(store, storage, STATE)
        for leftover in found.leftovers if arguments.delete else ():
            leftover.remove()
    print(describe_leftovers(found, is_dry=not arguments.delete))
