"""Give the champion's name back to the version before."""

import argparse
from typing import Any

from experiments.verbs.flags import add_alias, now, reason
from speaker.common.cli import Parser
from speaker.common.paths import STATE


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "demote", parents=[tracking], help="make the version before champion again"
    )
    flags.add_argument("--reason", type=reason, metavar="TEXT", help="why; kept with the version")
    add_alias(flags)
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Demote the champion."""
    from experiments.promotion import Request, demote
    from experiments.tracking.access import describe_places
    from experiments.tracking.store import existing_store

    store = existing_store(arguments.tracking_uri, STATE)
    print(describe_places(store.uri, store.decided_by), flush=True)
    print(demote(store, Request(now(), arguments.alias, arguments.reason or "")))
