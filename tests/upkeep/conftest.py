"""A state folder to be spoilt."""

import shutil
from pathlib import Path

import pytest

from experiments.analysis.leaderboard import best_runs
from experiments.context import TrainingContext
from experiments.promotion import Request, promote
from experiments.upkeep.moved import bring_home
from speaker.common.files import create_once
from tests.transfer.places import WHEN, search_in, store_in
from tests.upkeep.damages import Scene
from tests.upkeep.test_cleanup import at, interrupt


@pytest.fixture(scope="session")
def spoilable(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, context: TrainingContext
) -> Path:
    """A state folder with a study of three trials, whose best is champion, and another one, whose
    second trial was interrupted. Processes that test at once share it.
    """
    base = tmp_path_factory.getbasetemp()
    state = (base if worker_id == "master" else base.parent) / "spoilable"
    create_once(state, lambda partial: fill(partial, at(partial, context)))
    return state


def fill(state: Path, context: TrainingContext) -> None:
    state.mkdir()
    search_in(state, context)
    store = store_in(state)
    promote(store, best_runs(store, "s", 1)[0], Request(WHEN))
    interrupt(state, context)
    shutil.copytree(context.pack.folder, state / "packs" / context.pack.folder.name)


@pytest.fixture
def scene(spoilable: Path, tmp_path: Path) -> Scene:
    """A copy of the state folder, at home where it is."""
    state = Path(shutil.copytree(spoilable, tmp_path / "mlruns"))
    bring_home(state / "mlflow.db")
    return Scene(state)
