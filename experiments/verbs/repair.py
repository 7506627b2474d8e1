"""Bring a store back to life: one that was moved or copied, and what was deleted in MLflow's UI."""

import argparse
from typing import TYPE_CHECKING, Any

from speaker.common.cli import Parser, plain_name, printable
from speaker.common.errors import UserError
from speaker.common.paths import STATE

if TYPE_CHECKING:
    from experiments.tracking.store import TrackingStore


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verbs to subparsers."""
    flags = verbs.add_parser(
        "moved", parents=[tracking], help="make a moved or copied mlruns at home where it is now"
    )
    flags.set_defaults(run=run_moved)
    flags = verbs.add_parser(
        "restore",
        parents=[tracking],
        help="bring back runs, or all of them, that were deleted in the MLflow UI",
    )
    which = flags.add_mutually_exclusive_group()
    which.add_argument("--study", type=plain_name, metavar="NAME", help="the runs of this study")
    which.add_argument("--run", dest="run_id", metavar="ID", help="this run")
    flags.set_defaults(run=run_restore)


def run_moved(arguments: argparse.Namespace) -> None:
    """Rewrite the addresses that a moved store keeps."""
    from experiments.tracking.store import default_tracking_uri
    from experiments.upkeep.moved import bring_home
    from experiments.urls import masked, sqlite_path

    uri = arguments.tracking_uri or default_tracking_uri(STATE)
    if (path := sqlite_path(uri)) is None:
        raise UserError(
            f"only a store in a file moves with its folder, but {masked(uri)} is none; a server's "
            "addresses are its own"
        )
    if not path.is_file():
        raise UserError(
            f"there is no store at {path}; go to the folder that holds mlruns, or give "
            "--tracking-uri"
        )
    move = bring_home(path)
    if move is None:
        print(f"{printable(path.parent)} is where its runs say: nothing changed.")
        return
    led = f"{move.addresses} addresses led to {printable(move.old)}"
    print(f"{printable(move.new)} is at home here now: {led}.")
    if (move.old / path.name).exists():
        print(
            f"{printable(move.old)} is still there and keeps its own files: they are two stores "
            "from now on."
        )


def run_restore(arguments: argparse.Namespace) -> None:
    """Bring back the experiment with its runs, or else a study or a run."""
    from experiments.tracked_training import explaining_failures
    from experiments.tracking.store import TrackingStore, existing_uri
    from experiments.upkeep.restored import restore_experiment

    uri = existing_uri(arguments.tracking_uri, STATE)
    with explaining_failures("run the same command again"):
        if restore_experiment(uri):
            count = len(TrackingStore(uri).runs(""))
            print(f"The experiment is back, with the {count} runs it had.")
        elif arguments.run_id:
            print(restore_run(TrackingStore(uri), arguments.run_id))
        else:
            print(restore_runs(TrackingStore(uri), arguments.study))


def restore_run(store: "TrackingStore", run_id: str) -> str:
    """Bring back a run; return what was done."""
    from experiments.registry.versions import find_run

    if (found := find_run(store, run_id)) is None:
        raise UserError(f"there is no run {run_id!r} in {store.shown}; copy its id from the UI")
    if found.info.lifecycle_stage != "active":
        store.client.restore_run(run_id)
    return f"Run {run_id} is there."


def restore_runs(store: "TrackingStore", study: str | None) -> str:
    """Bring back the runs of a study, or without one say of which there are; return that."""
    from experiments.tracking.names import STUDY
    from experiments.upkeep.restored import deleted_runs, restore_study

    if study:
        return f"{restore_study(store, study)} deleted runs of study {study} are back."
    studies = {run.data.tags.get(STUDY, "") for run in deleted_runs(store)} - {""}
    named = f" --study is one of {', '.join(sorted(studies))}." if studies else ""
    return f"The experiment was not deleted. Studies with deleted runs: {len(studies)}.{named}"
