"""Copy models out of MLflow."""

import argparse
from pathlib import Path
from typing import Any

from speaker.common.cli import Parser, plain_name, positive_int, printable
from speaker.common.errors import UserError
from speaker.common.paths import STATE


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "fetch", parents=[tracking], help="copy a model out of MLflow into a folder"
    )
    which = flags.add_mutually_exclusive_group()
    which.add_argument("--model", default="champion", help="alias, version or run id")
    which.add_argument(
        "--study", type=plain_name, metavar="NAME", help="the best models of this study instead"
    )
    flags.add_argument(
        "--best", type=positive_int, default=1, metavar="N", help="how many: into folders 1 to N"
    )
    flags.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Copy a model, or the best ones of a study, out of MLflow."""
    from experiments.analysis.leaderboard import best_runs
    from experiments.registry.versions import download_model
    from experiments.tracking.store import existing_store

    if arguments.best != 1 and not arguments.study:
        raise UserError("--best needs --study NAME; without it, one --model is copied")
    _validate_model_folder(arguments.out)
    store = existing_store(arguments.tracking_uri, STATE)
    if arguments.study:
        for rank, run_id in enumerate(best_runs(store, arguments.study, arguments.best), start=1):
            print(printable(f"Fetched {download_model(store, run_id, arguments.out / str(rank))}."))
    else:
        print(printable(f"Fetched {download_model(store, arguments.model, arguments.out)}."))


def _validate_model_folder(folder: Path) -> None:
    """Raise UserError unless a model can be put into a folder without hurting what is there."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--out must be a folder, but {folder} is not; choose another")
    holds_a_model = any((folder / each / "model.json").exists() for each in (".", "1"))
    if folder.is_dir() and any(folder.iterdir()) and not holds_a_model:
        raise UserError(
            f"--out must be a new or empty folder or one with a model to replace, but {folder} "
            "holds something else; choose another"
        )
