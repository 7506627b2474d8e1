"""A store in a file of SQLite that was moved or copied to another folder.

MLflow keeps the absolute address of every file, and would read and write where the folder was. All
addresses are rewritten in one transaction: a kill leaves the store as it was.
"""

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from experiments.tracking import names
from speaker.common.errors import UserError, first_line
from speaker.common.files import canonical_json

BUSY_S = 60.0
# Where MLflow's database and our own tags keep addresses. Older databases lack some of these.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
    ("tags", "value"),  # of a study's run: the storage of its trials
    ("datasets", "dataset_source"),  # the demo corpus lies in the folder, too
)


@dataclass(frozen=True)
class Move:
    """From where to where a folder was moved, and how many addresses were rewritten."""

    old: Path
    new: Path
    addresses: int


def bring_home(database: Path) -> Move | None:
    """Make the folder of a database the home of what its runs and models keep; return what was
    done, or None where it is that already.

    Raises UserError for a file that holds no store of this program, or one whose files are kept
    elsewhere by choice.
    """
    new = database.parent
    try:
        with contextlib.closing(sqlite3.connect(database, BUSY_S, isolation_level=None)) as opened:
            opened.execute("BEGIN IMMEDIATE")
            old = _home(opened, database)
            if old == new:
                return None
            count = sum(_rewrite(opened, *place, old, new) for place in ADDRESSES)
            opened.execute("COMMIT")
    except sqlite3.Error as error:
        raise UserError(
            f"{database} must be MLflow's database, but cannot be read as one "
            f"({first_line(error)}); copy the whole folder again"
        ) from error
    return Move(old, new, count)


def _home(opened: sqlite3.Connection, database: Path) -> Path:
    """Return the folder that a store's addresses begin with."""
    found = opened.execute(
        "SELECT artifact_location FROM experiments WHERE name = ?", (names.EXPERIMENT,)
    ).fetchone()
    if found is None:
        raise UserError(
            f"{database} must hold runs of this program, but has no experiment "
            f"{names.EXPERIMENT!r}; give the right --tracking-uri"
        )
    address = urlsplit(found[0])
    path = Path(unquote(address.path))
    if address.scheme != "file" or path.name != "artifacts":
        raise UserError(
            f"{database} keeps its artifacts in {found[0]}, which does not move with it; there is "
            "nothing to bring back"
        )
    return path.parent


def _rewrite(opened: sqlite3.Connection, table: str, column: str, old: Path, new: Path) -> int:
    """Rewrite a column's addresses below a folder, whatever they begin with; return how many."""
    if not _has(opened, table, column):
        return 0
    count = 0
    for before, after in _beginnings(old, new):
        length = len(before)
        # By substr: LIKE takes the letters _ and % for others, and small ones for capitals.
        changed = opened.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608  # our own names
            f"WHERE substr({column}, 1, ?) = ?",
            (after, length + 1, length, before),
        )
        count += changed.rowcount
    return count


def _has(opened: sqlite3.Connection, table: str, column: str) -> bool:
    return column in {row[1] for row in opened.execute(f"PRAGMA table_info({table})")}


def _beginnings(old: Path, new: Path) -> list[tuple[str, str]]:
    """Return how addresses below a folder begin: before, and after."""
    forms = ("{}/", "sqlite:///{}/")
    uris = [(f"{old.as_uri()}/", f"{new.as_uri()}/")]
    uris += [(canonical_json({"uri": a})[:-2], canonical_json({"uri": b})[:-2]) for a, b in uris]
    return uris + [(form.format(old), form.format(new)) for form in forms]
