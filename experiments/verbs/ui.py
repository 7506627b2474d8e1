"""Serve the MLflow UI."""

import argparse
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from speaker.common.cli import Parser, port
from speaker.common.errors import UserError
from speaker.common.paths import STATE

if TYPE_CHECKING:
    from experiments.tracking.store import TrackingStore

MAX_STUDIES = 5  # whose links are printed
LOOK_UP_S = 0.2
STDERR = 2  # where the server says what it does; the links alone are output


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "ui", parents=[tracking], help="open the MLflow UI on this machine's loopback address"
    )
    flags.add_argument("--port", type=port, default=5000)
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Serve the MLflow UI until it is stopped, and say where, as soon as it answers."""
    from experiments.tracking.store import existing_store

    store = existing_store(arguments.tracking_uri, STATE)
    if store.uri.startswith("http"):
        print(f"The server has its own UI.\n{links(store, store.shown.rstrip('/'))}")
        return
    address = f"127.0.0.1:{arguments.port}"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", arguments.port)) == 0:
            raise UserError(
                f"--port must be free, but {address} answers already; choose another --port"
            )
    with serving(store.uri, arguments.port) as server:
        found = links(store, f"http://{address}")  # while the server starts
        while server.poll() is None and not answers(arguments.port):
            time.sleep(LOOK_UP_S)
        if server.poll() is None:
            print(f"{found}\nStop with Ctrl-C.", flush=True)
        server.wait()
    if server.returncode:
        raise RuntimeError(f"the MLflow server ended with {server.returncode}")


def links(store: "TrackingStore", address: str) -> str:
    """Return the pages to begin with, a line each, the first one that of the last study's best
    trials; `address` is the server's.
    """
    from experiments.tracking.pages import all_trials, save_leaderboards

    boards = save_leaderboards(store)[:MAX_STUDIES]
    lines = [f"Best trials of {each.study}: {address}/{each.saved}" for each in boards]
    plain = boards[0].plain if boards else all_trials(store)
    lines.insert(1, f"Best trials, in MLflow's own columns: {address}/{plain}")
    return "\n".join([*lines, f"Models: {address}/#/models"])


@contextlib.contextmanager
def serving(uri: str, number: int) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a server at a port of the loopback address, and stop it after a `with` block."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(number), "--workers", "1"]
    command += ["--allowed-hosts", f"127.0.0.1:{number},localhost:{number}"]
    command += ["--uvicorn-opts", "--log-level warning"]  # a line a request would bury the links
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # In a process group of its own, because the server starts processes that outlive it when it
    # alone is stopped.
    with subprocess.Popen(
        command, env={**os.environ, **quiet}, stdout=STDERR, start_new_session=True
    ) as server:
        try:
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def answers(number: int) -> bool:
    """Tell whether a server at a port of the loopback address says that it is well."""
    connection = http.client.HTTPConnection("127.0.0.1", number, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
