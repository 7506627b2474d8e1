"""A PostgreSQL server of a benchmark's own, and databases in it."""

from pathlib import Path

import pgserver
import sqlalchemy


class PostgresServer:
    """A real server whose files lie in a folder, reached through a socket there."""

    def __init__(self, folder: Path) -> None:
        self._server = pgserver.get_server(folder)
        self._url = sqlalchemy.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")

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
