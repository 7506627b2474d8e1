"""`python -m experiments VERB`: everything about finished work."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from experiments.model_folders import model_folders
from speaker.common.cli import (
    Parser,
    add_device,
    add_jobs,
    add_precision,
    add_storage,
    add_tracking_uri,
    plain_name,
    port,
    positive_int,
    run_cli,
)
from speaker.common.errors import UserError, first_line
from speaker.common.paths import STATE, validate_output_path, write_output
from speaker.prediction.verbs import add_verbs


def parser() -> Parser:
    """Return the command line."""
    flags = Parser(
        prog="python -m experiments", description="Look at finished trials and use the best."
    )
    verbs = flags.add_subparsers(dest="verb", required=True, metavar="VERB")
    tracking = Parser(add_help=False)
    add_tracking_uri(tracking)
    compare = verbs.add_parser("compare", parents=[tracking], help="rank the trials of a study")
    compare.add_argument("--study", type=plain_name, required=True, metavar="NAME")
    compare.add_argument("--best", type=positive_int, default=10, help="how many rows to show")
    compare.set_defaults(run=run_compare)
    effects = verbs.add_parser(
        "effects", parents=[tracking], help="which of the homework's four edits earned how much"
    )
    effects.add_argument("--study", type=plain_name, required=True, metavar="NAME")
    effects.add_argument("--figure", type=Path, metavar="FILE", help="PNG to draw, too")
    effects.set_defaults(run=run_effects)
    report = verbs.add_parser(
        "report", parents=[tracking], help="write a study's page: what won, and is that real"
    )
    report.add_argument("--study", type=plain_name, required=True, metavar="NAME")
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="HTML to write; NAME.html if not given"
    )
    report.set_defaults(run=run_report)
    confirm = verbs.add_parser(
        "confirm", parents=[tracking], help="train the best points of a study on fresh seeds"
    )
    confirm.add_argument("--study", type=plain_name, required=True, metavar="NAME")
    confirm.add_argument("--top", type=positive_int, default=3, metavar="N", help="points; 3")
    confirm.add_argument("--seeds", type=positive_int, default=5, metavar="N", help="at most; 5")
    confirm.add_argument(
        "--data", type=Path, metavar="FOLDER", help="the study's corpus; without one, the demo"
    )
    add_device(confirm)
    add_precision(confirm)
    add_jobs(confirm)
    add_storage(confirm)
    confirm.set_defaults(run=run_confirm)
    promote = verbs.add_parser(
        "promote", parents=[tracking], help="register the best model of a study as champion"
    )
    which = promote.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--study", type=plain_name, metavar="NAME", help="promote this study's best complete trial"
    )
    which.add_argument(
        "--run", dest="run_id", metavar="ID", help="promote this run, as train_trial.py leaves one"
    )
    promote.set_defaults(run=run_promote)
    fetch = verbs.add_parser(
        "fetch", parents=[tracking], help="copy a model out of MLflow into a folder"
    )
    which = fetch.add_mutually_exclusive_group()
    which.add_argument("--model", default="champion", help="alias, version or run id")
    which.add_argument(
        "--study", type=plain_name, metavar="NAME", help="the best models of this study instead"
    )
    fetch.add_argument(
        "--best", type=positive_int, default=1, metavar="N", help="how many: into folders 1 to N"
    )
    fetch.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    fetch.set_defaults(run=run_fetch)
    add_verbs(verbs, model_folders)
    ui = verbs.add_parser(
        "ui", parents=[tracking], help="open the MLflow UI on this machine's loopback address"
    )
    ui.add_argument("--port", type=port, default=5000)
    ui.set_defaults(run=run_ui)
    return flags


def run_compare(arguments: argparse.Namespace) -> None:
    """Print a study's table."""
    from experiments.analysis.answer import describe_answer
    from experiments.analysis.leaderboard import ranked, table
    from experiments.tracking.store import existing_store

    rows = ranked(existing_store(arguments.tracking_uri, STATE), arguments.study)
    print(f"{table(rows, arguments.best)}\n\n{describe_answer(rows)}".rstrip())


def run_effects(arguments: argparse.Namespace) -> None:
    """Print, and draw, what each edit earned."""
    from experiments.analysis.effects import describe_effects, draw_effects, effects_of
    from experiments.analysis.leaderboard import ranked
    from experiments.tracking.store import existing_store

    if arguments.figure:
        validate_output_path(arguments.figure)
    effects = effects_of(ranked(existing_store(arguments.tracking_uri, STATE), arguments.study))
    if effects is None:
        raise UserError(
            f"study {arguments.study!r} must hold all 16 corners of a seed, but does not; "
            "run python search.py --preset four-edits"
        )
    print(describe_effects(effects))
    if arguments.figure:
        draw_effects(effects, arguments.figure)
        print(f"Drew {arguments.figure}.")


def run_report(arguments: argparse.Namespace) -> None:
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
    print(f"Wrote {path}.")
    try:
        keep(store, report)
    except STORE_ERRORS as error:
        print(f"warning: {store.shown} did not take it ({first_line(error)})", file=sys.stderr)


def run_confirm(arguments: argparse.Namespace) -> None:
    """Race a study's best points on fresh seeds."""
    from experiments.confirm import Machine, confirm_best
    from experiments.context import load_context
    from experiments.report.publish import publish
    from experiments.study.search import default_storage
    from experiments.tracking.store import existing_store

    store = existing_store(arguments.tracking_uri, STATE)
    context = load_context(
        arguments.data, arguments.device, arguments.precision, STATE, arguments.jobs
    )
    machine = Machine(context, arguments.storage or default_storage(STATE), arguments.jobs)
    confirm_best(store, arguments.study, arguments.top, arguments.seeds, machine)
    publish(store, arguments.study)  # with what was confirmed


def run_promote(arguments: argparse.Namespace) -> None:
    """Promote a given run, or a study's best: the one that was confirmed, where one was."""
    from experiments.analysis.confirmation import confirmed_run
    from experiments.analysis.leaderboard import best_runs
    from experiments.tracking.registry import promote
    from experiments.tracking.store import existing_store

    store = existing_store(arguments.tracking_uri, STATE)
    run_id = arguments.run_id
    if not run_id and (found := confirmed_run(store, arguments.study)):
        run_id, name = found
        print(f"The point that {name} found best, with the best of its weights:")
    print(promote(store, run_id or best_runs(store, arguments.study, 1)[0]).describe())


def run_fetch(arguments: argparse.Namespace) -> None:
    """Copy a model, or the best ones of a study, out of MLflow."""
    from experiments.analysis.leaderboard import best_runs
    from experiments.tracking.registry import download_model
    from experiments.tracking.store import existing_store

    if arguments.best != 1 and not arguments.study:
        raise UserError("--best needs --study NAME; without it, one --model is copied")
    _validate_model_folder(arguments.out)
    store = existing_store(arguments.tracking_uri, STATE)
    if arguments.study:
        for rank, run_id in enumerate(best_runs(store, arguments.study, arguments.best), start=1):
            print(f"Fetched {download_model(store, run_id, arguments.out / str(rank))}.")
    else:
        print(f"Fetched {download_model(store, arguments.model, arguments.out)}.")


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


def run_ui(arguments: argparse.Namespace) -> None:
    """Serve the MLflow UI until it is stopped."""
    from experiments.tracking.store import existing_store

    store = existing_store(arguments.tracking_uri, STATE)
    page = f"#/experiments/{store.experiment_id}/runs?workflowType=machine_learning"
    best = f"{page}&orderByKey=metrics.%60best%2Faccuracy_whole%60&orderByAsc=false"
    if store.uri.startswith("http"):
        print(f"The server has its own UI: {store.uri}/{page}\nBest first: {store.uri}/{best}")
        return
    address = f"127.0.0.1:{arguments.port}"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", arguments.port)) == 0:
            raise UserError(
                f"--port must be free, but {address} answers already; choose another --port"
            )
    print(f"Runs: http://{address}/{page}\nBest first: http://{address}/{best}")
    print(f"Models: http://{address}/#/models\nStop with Ctrl-C.", flush=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        store.uri,
        "--host",
        "127.0.0.1",
    ]
    command += ["--port", str(arguments.port), "--workers", "1"]
    command += ["--allowed-hosts", f"{address},localhost:{arguments.port}"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # In a process group of its own, because the server starts processes that outlive it when it
    # alone is stopped.
    with subprocess.Popen(command, env={**os.environ, **quiet}, start_new_session=True) as server:
        try:
            server.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
    if server.returncode:
        raise RuntimeError(f"the MLflow server ended with {server.returncode}")


def main() -> None:
    """Run a verb."""
    arguments = parser().parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    run_cli(main)
