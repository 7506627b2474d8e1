"""Train the best points of a study on fresh seeds."""

import argparse
from pathlib import Path
from typing import Any

from experiments.verbs.flags import FRESH_SEEDS, add_engine, add_study
from speaker.common.cli import (
    Parser,
    add_device,
    add_precision,
    add_storage,
    positive_int,
)
from speaker.common.paths import STATE


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "confirm", parents=[tracking], help="train the best points of a study on fresh seeds"
    )
    add_study(flags)
    flags.add_argument("--top", type=positive_int, default=3, metavar="N", help="how many points")
    flags.add_argument(
        "--seeds",
        type=positive_int,
        default=FRESH_SEEDS,
        metavar="N",
        help=f"of each point, at most (default {FRESH_SEEDS})",
    )
    flags.add_argument(
        "--data", type=Path, metavar="FOLDER", help="the study's corpus; without one, the demo"
    )
    add_device(flags)
    add_precision(flags)
    add_engine(flags)
    add_storage(flags)
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Race a study's best points on fresh seeds."""
    from experiments.confirm import Machine, confirm_best
    from experiments.context import load_context
    from experiments.engines.choice import engine_of
    from experiments.report.publish import publish
    from experiments.study.storage import default_storage
    from experiments.tracking.access import describe_places
    from experiments.tracking.store import existing_store

    engine = engine_of(arguments)
    store = existing_store(arguments.tracking_uri, STATE)
    print(describe_places(store.uri, store.decided_by), flush=True)
    context = load_context(
        arguments.data, arguments.device, arguments.precision, STATE, engine.jobs_here
    )
    context = engine.settle(context)
    machine = Machine(context, arguments.storage or default_storage(STATE), engine)
    confirm_best(store, arguments.study, arguments.top, arguments.seeds, machine)
    publish(store, arguments.study)  # with what was confirmed
