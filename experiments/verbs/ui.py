"""Serve the MLflow UI."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from speaker.common.cli import Parser, port
from speaker.common.errors import UserError
from speaker.common.paths import STATE


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "ui", parents=[tracking], help="open the MLflow UI on this machine's loopback address"
    )
    flags.add_argument("--port", type=port, default=5000)
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
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
