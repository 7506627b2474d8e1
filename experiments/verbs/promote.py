"""Register the best model of a study, and put it in charge if it is better."""

import argparse
from typing import Any

from experiments.verbs.flags import add_alias, now, reason
from speaker.common.cli import Parser, plain_name
from speaker.common.paths import STATE


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "promote",
        parents=[tracking],
        help="register the best model of a study as champion, if it is better than the last one",
    )
    which = flags.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--study", type=plain_name, metavar="NAME", help="promote this study's best complete trial"
    )
    which.add_argument(
        "--run", dest="run_id", metavar="ID", help="promote this run, as train_trial.py leaves one"
    )
    flags.add_argument(
        "--force", type=reason, metavar="REASON", help="promote a model that is not better, too"
    )
    flags.add_argument(
        "--dry-run", action="store_true", help="say what would happen, and change nothing"
    )
    add_alias(flags)
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Promote a given run, or a study's best: the one that was confirmed, where one was."""
    from experiments.analysis.confirmation import confirmed_run
    from experiments.analysis.leaderboard import best_runs
    from experiments.promotion import Request, promote
    from experiments.tracking.access import describe_places
    from experiments.tracking.store import existing_store

    store = existing_store(arguments.tracking_uri, STATE)
    print(describe_places(store.uri, store.decided_by), flush=True)
    run_id = arguments.run_id
    if not run_id and (found := confirmed_run(store, arguments.study)):
        run_id, name = found
        print(f"The point that {name} found best, with the best of its weights:")
    request = Request(
        now(), arguments.alias, arguments.force or "", arguments.dry_run, STATE / "packs"
    )
    print(promote(store, run_id or best_runs(store, arguments.study, 1)[0], request))
