"""A store that was moved or copied is brought back by one command, whatever letters its path has."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from experiments import promotion
from experiments.analysis.leaderboard import best_runs, ranked
from experiments.context import TrainingContext
from experiments.promotion import Request
from experiments.registry.versions import download_model
from experiments.tracking.names import CHAMPION
from experiments.tracking.store import TrackingStore
from experiments.upkeep import moved
from experiments.upkeep.moved import bring_home
from speaker.common.errors import UserError
from tests.helpers import refused
from tests.models import finished_run


def addresses(database: Path, text: str) -> list[tuple[str, str]]:
    """Return the columns, of all tables, in which a text stands."""
    found = []
    with closing(sqlite3.connect(database)) as opened:
        for (table,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            for column in [row[1] for row in opened.execute(f"PRAGMA table_info({table})")]:
                where = f"WHERE instr(CAST({column} AS TEXT), ?)"
                query = f"SELECT count(*) FROM {table} {where}"  # noqa: S608
                if opened.execute(query, (text,)).fetchone()[0]:
                    found.append((table, column))
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, context: TrainingContext) -> Path:
    """A folder with a study of two trials, and a champion; it is copied, and stays as it is."""
    folder = tmp_path_factory.mktemp("home") / "mlruns"
    folder.mkdir()
    store = TrackingStore(f"sqlite:///{folder}/mlflow.db")
    tags = {"storage": f"sqlite:///{folder}/optuna.db"}
    parent = store.open_study("s", "id", None, {"seed": "0"}, tags, context)
    for number, hits in enumerate(("110000", "111100")):
        finished_run(store, context, number, hits, **{"mlflow.parentRunId": parent})
    promotion.promote(store, best_runs(store, "s", 1)[0], Request("2026-11-28 04:00:00 UTC"))
    return folder


@pytest.mark.parametrize("name", ["o_her 5% place", "mlruns/mlruns", "é'"])
def test_a_copied_store_is_as_it_was(home: Path, tmp_path: Path, name: str) -> None:
    before = ranked(TrackingStore(f"sqlite:///{home}/mlflow.db"), "s")
    new = Path(shutil.copytree(home, tmp_path / "new" / name))
    uri = f"sqlite:///{new}/mlflow.db"
    assert "python -m experiments moved --tracking-uri" in refused(lambda: TrackingStore(uri))
    assert addresses(new / "mlflow.db", f"{home}/")
    move = bring_home(new / "mlflow.db")
    assert move is not None
    assert (move.old, move.new) == (home, new)
    assert addresses(new / "mlflow.db", f"{home}/") == []
    store = TrackingStore(uri)
    assert ranked(store, "s") == before
    (new / "artifacts").rename(tmp_path / "hidden")
    with pytest.raises(UserError, match="files cannot be read"):
        download_model(store, CHAMPION, tmp_path / "champion")
    (tmp_path / "hidden").rename(new / "artifacts")
    assert download_model(store, CHAMPION, tmp_path / "champion")
    assert bring_home(new / "mlflow.db") is None, "it is at home"


def test_a_move_that_is_cut_off_changes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Path(shutil.copytree(home, tmp_path / "new"))
    before = addresses(new / "mlflow.db", f"{home}/")
    cut = (*moved.ADDRESSES[:2], ("no_such_table", "where_sqlite_stops"))
    monkeypatch.setattr(moved, "ADDRESSES", cut)
    monkeypatch.setattr(moved, "_has", lambda *_: True)
    assert "cannot be read as one" in refused(lambda: bring_home(new / "mlflow.db"))
    assert addresses(new / "mlflow.db", f"{home}/") == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no database at all", "cannot be read as one"),
        (b"", "cannot be read as one"),
    ],
)
def test_what_is_no_store_is_one_clear_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    assert words in refused(lambda: bring_home(tmp_path / "mlflow.db"))


def test_artifacts_elsewhere_are_left_alone(home: Path, tmp_path: Path) -> None:
    new = Path(shutil.copytree(home, tmp_path / "new"))
    with closing(sqlite3.connect(new / "mlflow.db")) as opened, opened:
        opened.execute("UPDATE experiments SET artifact_location = 's3://bucket/artifacts'")
    assert "does not move with it" in refused(lambda: bring_home(new / "mlflow.db"))
