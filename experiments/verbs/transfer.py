"""Write a study into one file, and take one in: two verbs."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from experiments.verbs.flags import now
from speaker.common.cli import Parser, add_storage, plain_name, printable
from speaker.common.paths import STATE, validate_output_path

ZIP = b"PK\x03\x04"  # how such files begin
AGAIN = "run the same command again: it goes on from there"


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verbs to subparsers."""
    flags = verbs.add_parser(
        "export",
        parents=[tracking],
        help="write a study into one file: runs, curves, models and trials",
    )
    flags.add_argument("study", type=plain_name, metavar="STUDY")
    flags.add_argument("--to", type=Path, required=True, metavar="FILE", help="a zip")
    add_storage(flags)
    flags.set_defaults(run=run_export)
    flags = verbs.add_parser(
        "import", parents=[tracking], help="take in a study that export has written"
    )
    flags.add_argument("file", type=Path, metavar="FILE")
    flags.add_argument(
        "--as", dest="name", type=plain_name, metavar="NAME", help="call the study so here"
    )
    add_storage(flags)
    flags.set_defaults(run=run_import)


def run_export(arguments: argparse.Namespace) -> None:
    """Write a study into a file."""
    from experiments.study.storage import default_storage
    from experiments.tracked_training import explaining_failures
    from experiments.tracking.store import existing_store
    from experiments.transfer.outgoing import export

    validate_output_path(arguments.to, "--to", begins=ZIP)
    store = existing_store(arguments.tracking_uri, STATE)
    storage = arguments.storage or default_storage(STATE)
    with explaining_failures("run the same command again"):
        written = export(store, storage, arguments.study, arguments.to)
    print(
        f"Wrote {printable(arguments.to)}: {', '.join(written.studies)}; {written.trials} runs, "
        f"{written.models} models, {written.size:,} bytes."
    )
    if written.lost:
        print(f"The models of these runs were removed before: {', '.join(written.lost)}.")
    print(f"On another machine: python -m experiments import {shlex.quote(arguments.to.name)}")


def run_import(arguments: argparse.Namespace) -> None:
    """Take a study in from a file."""
    from experiments.report.publish import publish
    from experiments.study.storage import default_storage
    from experiments.study.trial import STORE_FAILURES
    from experiments.tracked_training import explaining_failures
    from experiments.tracking.store import TrackingStore, default_tracking_uri
    from experiments.transfer.incoming import Here, take

    uri = arguments.tracking_uri or default_tracking_uri(STATE)
    storage, when = arguments.storage or default_storage(STATE), now()
    with explaining_failures(AGAIN, STORE_FAILURES):
        taken = take(
            arguments.file, arguments.name, lambda: Here(TrackingStore(uri), storage, when)
        )
    print("\n".join(map(printable, taken.lines)))
    for study in taken.new:
        publish(TrackingStore(uri), study)
