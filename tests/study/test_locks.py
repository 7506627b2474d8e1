import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.study.locks import open_locks
from experiments.study.storage import default_storage, open_storage
from experiments.tracking.run import FencedError
from experiments.tracking.store import TrackingStore
from experiments.urls import masked
from speaker.common.errors import UserError
from tests.helpers import ROOT, cut_locks, refused

HOLD = """
import sys, time
from experiments.study.locks import open_locks
from experiments.study.storage import default_storage, open_storage
release = open_locks(sys.argv[1], "study").take("trial-3")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(request.getfixturevalue("postgres"))
        if request.param == "postgresql"
        else f"sqlite:///{tmp_path}/o.db"
    )


def test_one_holder_at_a_time(url: str) -> None:
    first, second = open_locks(url, "s"), open_locks(url, "s")
    lock = first.try_take("a")
    assert lock is not None
    lock.prove()
    assert second.try_take("a") is None
    # Other names and other studies are free.
    with second.holding("b"), open_locks(url, "other").holding("a"):
        pass
    lock.release()
    with second.holding("a"):
        assert first.try_take("a") is None
    with first.holding("a"):
        assert second.try_take("a") is None


def test_a_shared_lock_keeps_out_who_wants_it_alone(url: str) -> None:
    first, second = open_locks(url, "shared"), open_locks(url, "shared")
    with first.sharing("alive"), second.sharing("alive"):
        assert first.try_take("alive") is None
    alone = first.try_take("alive")
    assert alone is not None
    alone.release()


def test_who_holds_what_is_seen_without_a_trace(url: str, tmp_path: Path) -> None:
    names = ["alive", "trial-0", "trial-1", "never"]
    assert open_locks(url, "looked-at", only_look=True).held(names) == set()
    assert not list(tmp_path.rglob("looked-at"))
    locks = open_locks(url, "looked-at")
    with locks.sharing("alive"), locks.holding("trial-1"):
        before = {path: path.stat() for path in tmp_path.rglob("*")}
        assert open_locks(url, "looked-at", only_look=True).held(names) == {"alive", "trial-1"}
        assert open_locks(url, "another", only_look=True).held(names) == set()
        assert {path: path.stat() for path in tmp_path.rglob("*")} == before
    assert locks.held(names) == set()


def test_a_lock_whose_connection_was_cut_is_taken_anew_unless_another_has_it(postgres: str) -> None:
    lock = open_locks(postgres, "cut").take("a")
    assert not lock.prove()
    cut_locks(postgres)
    assert lock.prove(), "another worker may have held it"
    assert not lock.prove()
    assert open_locks(postgres, "cut").try_take("a") is None
    cut_locks(postgres)
    with open_locks(postgres, "cut").holding("a"):
        with pytest.raises(FencedError):
            lock.prove()
        lock.release()  # takes nothing from who holds it now
        assert open_locks(postgres, "cut").try_take("a") is None


def test_a_lock_dies_with_its_process(url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, url], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        locks = open_locks(url, "study")
        assert locks.try_take("trial-3") is None
        holder.send_signal(signal.SIGSTOP)
        assert locks.try_take("trial-3") is None, (
            "a stopped worker may go on, so its trial stays its own"
        )
        holder.kill()
        holder.wait()
        with locks.holding("trial-3"):  # a server notices the cut connection in a moment
            assert locks.try_take("trial-3") is None


@pytest.mark.parametrize(
    "wrong", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "nonsense", ""]
)
def test_only_storages_with_locks_are_taken(wrong: str) -> None:
    with pytest.raises(UserError, match="a storage must be|cannot be used"):
        open_locks(wrong, "study")


@pytest.mark.parametrize("path", ["loop", "loop/optuna.db"])
def test_a_link_to_itself_is_no_store(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    url, why = f"sqlite:///{tmp_path}/{path}", "Too many levels of symbolic links"
    assert why in refused(lambda: open_storage(url))
    assert why in refused(lambda: TrackingStore(url))
    assert default_storage(tmp_path / "loop") == f"sqlite:///{tmp_path}/loop/optuna.db"
    assert (tmp_path / "loop").is_symlink()


def test_passwords_are_masked() -> None:
    assert masked("postgresql+psycopg://me:secret@host/db") == "postgresql+psycopg://me:***@host/db"
    assert masked("http://me:secret@host:5000") == "http://me:***@host:5000"
    assert masked("nonsense") == "nonsense"
    with pytest.raises(UserError) as caught:
        open_locks("mysql://me:secret@host/db", "study")
    assert "secret" not in str(caught.value)
