import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.locks import FileLocks, masked, open_locks
from speaker.errors import UserError
from tests.helpers import ROOT

HOLD = """
import sys, time
from pathlib import Path
from experiments.locks import FileLocks
release = FileLocks(Path(sys.argv[1])).take("trial-3")
print("held", flush=True)
time.sleep(60)
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = FileLocks(tmp_path), FileLocks(tmp_path)
    release = first.try_take("a")
    assert release is not None
    assert second.try_take("a") is None
    assert second.try_take("b") is not None
    release()
    with second.holding("a"):
        assert first.try_take("a") is None
    assert first.try_take("a") is not None


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        locks = FileLocks(tmp_path)
        assert locks.try_take("trial-3") is None
        holder.send_signal(signal.SIGSTOP)
        assert locks.try_take("trial-3") is None, "a stopped worker may go on, so its trial stays its own"
        holder.kill()
        holder.wait()
        assert locks.try_take("trial-3") is not None


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "nonsense", ""])
def test_only_storages_with_locks_are_taken(url: str) -> None:
    with pytest.raises(UserError, match="a storage must be"):
        open_locks(url, "study")


@pytest.mark.parametrize("name", ["", "a/b", "../x", "it's", "a" * 101, ".hidden"])
def test_a_studys_name_is_a_file_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a study's name"):
        open_locks(f"sqlite:///{tmp_path}/optuna.db", name)


def test_passwords_are_masked() -> None:
    assert masked("postgresql+psycopg://me:secret@host/db") == "postgresql+psycopg://me:***@host/db"
    with pytest.raises(UserError) as caught:
        open_locks("mysql://me:secret@host/db", "study")
    assert "secret" not in str(caught.value)
