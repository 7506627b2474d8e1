"""Real servers: MLflow's on the loopback, PostgreSQL on a socket in a folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pgserver
import sqlalchemy

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


class PostgresServer:
    """A real server whose files lie in a folder, reached through a socket there."""

    def __init__(self, folder: Path) -> None:
        self._server = pgserver.get_server(folder)
        self._url = sqlalchemy.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        self.url = self._url.render_as_string(hide_password=False)  # of its first database

    def make(self, name: str) -> str:
        """Make a database and return its URL."""
        self.ask(f"CREATE DATABASE {name}")
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.ask(f"DROP DATABASE {name} WITH (FORCE)")

    def ask(self, words: str) -> int | None:
        """Return the number that the server answers, if it does."""
        engine = sqlalchemy.create_engine(self._url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            answer = connection.execute(sqlalchemy.text(words))
            found = answer.scalar() if answer.returns_rows else None
        engine.dispose()
        return found

    def close(self) -> None:
        """Stop the server."""
        self._server.cleanup()
