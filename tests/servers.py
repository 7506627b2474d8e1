"""A real MLflow server on the loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import environment


def free_port() -> int:
    """Return a port of the loopback that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(port: int, within: float) -> bool:
    """Tell whether a server answers on a port, or comes to within some seconds."""
    deadline = time.monotonic() + within
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)


def serve(home: Path, port: int) -> "subprocess.Popen[bytes]":
    """Start a real MLflow server whose state lies in a folder, and wait until it answers."""
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{home}/server.db",
    ]
    command += [
        "--artifacts-destination",
        str(home / "served"),
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    settings = {**environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        command,
        env=settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert answers(port, within=240)
    return server


def stop(server: "subprocess.Popen[bytes]") -> None:
    """Kill a server and all of its processes."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
