"""Train a run again, and say whether it comes to the same."""

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments.verbs.flags import now
from speaker.common.cli import Parser
from speaker.common.paths import STATE


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "replay", parents=[tracking], help="train a run again, and certify that it is the same"
    )
    flags.add_argument("run_id", metavar="RUN", help="id of a trial's run that has ended")
    flags.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where the run's corpus lies now, if it moved"
    )
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Train a run again, tag it with the verdict, and print that; exit code 1 if it differs."""
    from experiments.replay import (
        Certificate,
        Verdict,
        context_of,
        contradiction,
        read_record,
        replay,
    )
    from experiments.tracking.access import describe_places
    from experiments.tracking.store import existing_store

    store = existing_store(arguments.tracking_uri, STATE)
    print(describe_places(store.uri, store.decided_by), flush=True)
    record = read_record(store, arguments.run_id)
    if broken := contradiction(store, record):
        words = f"it was not trained, because {broken}"
        certificate = Certificate(Verdict.DIFFERENT, words, "the record itself")
    else:
        context, config = context_of(record, arguments.data, STATE), record.config
        print(
            f"Run {record.run_id}, {config.label()}, again, from its record alone: "
            f"{config.steps:,} steps on {context.provenance['device']}.",
            flush=True,
        )
        certificate = replay(record, context)
    store.tag_run(record.run_id, certificate.tags(now()))
    print(certificate.describe())
    if certificate.verdict == Verdict.DIFFERENT:
        sys.exit(1)
