"""Locks that tell a living worker from a dead one: who holds a trial's lock is running it.

A lock dies with its process, whatever kills it; no clock decides. On SQLite they are files locked
with flock beside the database, for workers of one machine; on PostgreSQL advisory locks, for
workers anywhere. Those die with their connection, too: who writes proves first that it holds one.
"""

import contextlib
import fcntl
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import sqlalchemy
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from experiments.tracking.run import FencedError
from experiments.urls import masked
from speaker.common.errors import UserError, first_line
from speaker.common.files import real_path

ALIVE = "alive"  # which all searches of a study share: while nobody holds it, none goes on
EXAMPLES = (
    "use sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME after pip install 'psycopg[binary]'"
)
ALONE, SHARED = "", "_shared"  # how PostgreSQL calls what takes an advisory lock
# A machine that is gone without a word holds its locks for a minute, not for hours.
NOTICE_THE_DEAD = {
    "tcp_keepalives_idle": 30,
    "tcp_keepalives_interval": 10,
    "tcp_keepalives_count": 3,
}


class Lock:
    """A lock that is held, until it is released or its process ends."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release

    def release(self) -> None:
        """Let others take it."""
        self._release()

    def prove(self) -> bool:
        """Make sure that it is held; tell whether it was lost and had to be taken anew, so that
        another worker may have held it meanwhile.

        Raises FencedError where one does now, and a database's errors where that does not answer.
        """
        return False


class Locks(ABC):
    """The locks of one study, by name."""

    @abstractmethod
    def try_take(self, name: str) -> Lock | None:
        """Take a lock, or return None when another worker holds it."""

    @abstractmethod
    def take(self, name: str) -> Lock:
        """Wait for a lock and take it."""

    @abstractmethod
    def share(self, name: str) -> Lock:
        """Wait until nobody holds a lock alone, and hold it together with others."""

    @abstractmethod
    def held(self, names: Iterable[str]) -> set[str]:
        """Return which of these locks somebody holds, and leave no trace of having looked."""

    @contextlib.contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Hold a lock for a `with` block."""
        with _released(self.take(name)):
            yield

    @contextlib.contextmanager
    def sharing(self, name: str) -> Iterator[None]:
        """Hold a lock together with others for a `with` block."""
        with _released(self.share(name)):
            yield


class FileLocks(Locks):
    """Locks as files in a folder, which is made unless it is only to be looked into."""

    def __init__(self, folder: Path, only_look: bool = False) -> None:
        if not only_look:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def try_take(self, name: str) -> Lock | None:
        """Take a lock, or return None when another worker holds it."""
        lock = FileLock(self._folder / f"{name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return Lock(lock.release)

    def take(self, name: str) -> Lock:
        """Wait for a lock and take it."""
        lock = FileLock(self._folder / f"{name}.lock")
        lock.acquire()
        return Lock(lock.release)

    def share(self, name: str) -> Lock:
        """Wait until nobody holds a lock alone, and hold it together with others."""
        handle = os.open(self._folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_SH)
        return Lock(lambda: os.close(handle))

    def held(self, names: Iterable[str]) -> set[str]:
        """Return which of these locks somebody holds, and leave no trace of having looked."""
        return {name for name in names if is_held(self._folder / f"{name}.lock")}


class PostgresLocks(Locks):
    """Session-level advisory locks; each holds one connection of its own,
    and goes when that is cut.
    """

    def __init__(self, url: str, study: str) -> None:
        self._engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        self._study = study

    def try_take(self, name: str) -> Lock | None:
        """Take a lock, or return None when another worker holds it."""
        connection = self.try_connect(name)
        return PostgresLock(self, name, connection) if connection else None

    def take(self, name: str) -> Lock:
        """Wait for a lock and take it."""
        connection = self._connect()
        connection.execute(
            sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": self._key(name)}
        )
        return PostgresLock(self, name, connection)

    def try_connect(self, name: str, how: str = ALONE) -> sqlalchemy.Connection | None:
        """Return a connection that holds a lock, or None when another one does."""
        connection = self._connect()
        query = f"SELECT pg_try_advisory_lock{how}(:key)"  # our own words
        if connection.execute(sqlalchemy.text(query), {"key": self._key(name)}).scalar():
            return connection
        connection.close()
        return None

    def share(self, name: str) -> Lock:
        """Wait until nobody holds a lock alone, and hold it together with others."""
        connection = self._connect()
        connection.execute(
            sqlalchemy.text("SELECT pg_advisory_lock_shared(:key)"), {"key": self._key(name)}
        )
        return PostgresLock(self, name, connection, SHARED)

    def held(self, names: Iterable[str]) -> set[str]:
        """Return which of these locks somebody holds, by one look at the server's own table."""
        key = "(classid::bigint << 32) | objid::bigint"  # as two halves of 32 bits
        here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        query = f"SELECT {key} FROM pg_locks WHERE locktype = 'advisory' AND granted AND {here}"  # noqa: S608  # our own words
        with self._connect() as connection:
            taken = {row[0] for row in connection.execute(sqlalchemy.text(query))}
        return {name for name in names if self._key(name) in taken}

    def _connect(self) -> sqlalchemy.Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        for setting, value in NOTICE_THE_DEAD.items():
            connection.execute(sqlalchemy.text(f"SET {setting} = {value}"))
        return connection

    def _key(self, name: str) -> int:
        digest = hashlib.sha256(f"{self._study}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)


class PostgresLock(Lock):
    """A lock that a connection has taken: it is held as long as that answers."""

    def __init__(
        self, locks: PostgresLocks, name: str, connection: sqlalchemy.Connection, how: str = ALONE
    ) -> None:
        super().__init__(self._close)
        self._locks, self._name, self._connection, self._how = locks, name, connection, how

    def prove(self) -> bool:
        """Make sure that it is held: see Lock."""
        try:
            self._connection.execute(sqlalchemy.text("SELECT 1"))
        except SQLAlchemyError as error:
            connection = self._locks.try_connect(self._name, self._how)
            if connection is None:
                raise FencedError(first_line(error)) from error
            self._close()
            self._connection = connection
            return True
        return False

    def _close(self) -> None:
        with contextlib.suppress(SQLAlchemyError):  # of a connection that is gone already
            self._connection.close()


@contextlib.contextmanager
def _released(lock: Lock) -> Iterator[None]:
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Tell whether somebody holds the lock that a file is; one that is not there is nobody's."""
    try:
        handle = os.open(path, os.O_RDWR)  # what may be locked alone, over a network, too
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def open_locks(storage_url: str, study: str, only_look: bool = False) -> Locks:
    """Return the locks that go with a study's storage; those that are `only_look`ed at leave no
    trace.

    Raises UserError for what is no database of SQLite or PostgreSQL, or cannot be reached.
    """
    try:
        url = sqlalchemy.make_url(storage_url)
        if url.get_backend_name() == "postgresql":
            return PostgresLocks(storage_url, study)
        if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
            path = real_path(Path(url.database))
            return FileLocks(path.parent / "locks" / path.stem / study, only_look)
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(
            f"the storage {masked(storage_url)} cannot be used ({reason}); {EXAMPLES}"
        ) from error
    raise UserError(
        "a storage must be a file of SQLite or a database of PostgreSQL, but got "
        f"{masked(storage_url)}; {EXAMPLES}"
    )
