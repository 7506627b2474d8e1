"""Open the database that holds a study."""

import os
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from experiments.study.locks import open_locks
from experiments.tracking.access import LOCKED
from experiments.urls import masked
from speaker.common.errors import UserError, first_line
from speaker.common.files import create_once, real_path

BUSY_TIMEOUT_S = 15
UPGRADE = "optuna storage upgrade"  # Optuna names it where a database is of an older release


def open_storage(url: str) -> RDBStorage:
    """Open a study storage, making an SQLite file or a PostgreSQL database's tables once,
    however many ask.

    Raises UserError when it cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        address = sqlalchemy.make_url(url)
        if address.get_backend_name() != "sqlite":
            with open_locks(url, "storage").holding("tables"):
                return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        path = real_path(Path(address.database or ""))
        create_once(path, lambda partial: RDBStorage(f"sqlite:///{partial}").engine.dispose())
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_S}})
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError) as error:
        if UPGRADE in str(error):
            raise UserError(
                f"the study storage {masked(url)} is of an older Optuna than {version('optuna')}; "
                f"copy it, and bring it up to date: {UPGRADE} --storage {shlex.quote(masked(url))}"
            ) from error
        reason = first_line(error.__cause__ or error)
        step = "end what holds it" if LOCKED in reason else "check --storage"
        raise UserError(
            f"the study storage {masked(url)} cannot be opened ({reason}); {step}"
        ) from error
    _begin_immediately(storage.engine)
    return storage


def default_storage(state: Path) -> str:
    """Return the usual environment variable's storage, or else the database in the state folder."""
    return os.environ.get("OPTUNA_STORAGE") or f"sqlite:///{real_path(state) / 'optuna.db'}"


def _begin_immediately(engine: sqlalchemy.Engine) -> None:
    """Make every transaction take the write lock at its start: one that reads, then writes,
    cannot wait for it.
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def _leave_begin_to_us(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def _begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections opened before this do not know it
