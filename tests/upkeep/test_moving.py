"""A folder of a user's, moved: every command says what to do, and afterwards says what it said before."""

import shutil
from pathlib import Path

import pytest

from experiments.tracking.store import TrackingStore
from experiments.verbs.ui import links
from tests.helpers import STUDY, assert_whole
from tests.warm import run_warm

pytestmark = pytest.mark.slow

NARROW = ("--choices", "d_model=80", "--choices", "num_layers=1")
SEARCH = ("search.py", "--data", "corpus", "--steps", "5", *NARROW)
PREDICT = ("speaker", "predict", "--data", "corpus", "--model", "champion", "--out")
COMPARE = ("experiments", "compare", "--study", STUDY)


def test_a_folder_that_was_moved_is_brought_back(home: Path, tmp_path: Path) -> None:
    old = home / "colab"
    old.mkdir()
    shutil.move(home / "corpus", old / "corpus")
    first: list[tuple[object, ...]] = [
        (*SEARCH, "--trials", 2), ("experiments", "promote", "--study", STUDY), (*PREDICT, "a.csv"),
    ]  # fmt: skip
    for words in first:
        done = run_warm(old, *words)
        assert done.returncode == 0, done.stderr
    table = run_warm(old, *COMPARE).stdout
    pages = links(TrackingStore(f"sqlite:///{old}/mlruns/mlflow.db"), "http://there")
    new = tmp_path / "a disk"
    old.rename(new)
    every: list[tuple[object, ...]] = [
        COMPARE, (*PREDICT, "b.csv"), (*SEARCH, "--trials", 3), ("experiments", "ui"),
    ]  # fmt: skip
    for words in every:
        said = run_warm(new, *words)
        assert said.returncode == 2, words
        assert said.stderr.endswith("make this its home: python -m experiments moved\n"), (
            said.stderr
        )
    assert not (new / "b.csv").exists()
    moved = run_warm(new, "experiments", "moved")
    assert moved.returncode == 0, moved.stderr
    assert moved.stdout.startswith(f"{new}/mlruns is at home here now: ")
    assert run_warm(new, *COMPARE).stdout == table
    done = run_warm(new, *PREDICT, "b.csv")
    assert done.returncode == 0, done.stderr
    assert (new / "b.csv").read_bytes() == (new / "a.csv").read_bytes()
    assert links(TrackingStore(f"sqlite:///{new}/mlruns/mlflow.db"), "http://there") == pages
    done = run_warm(new, *SEARCH, "--trials", 3)
    assert done.returncode == 0, done.stderr
    assert_whole(new, 3)
    assert not old.exists()
