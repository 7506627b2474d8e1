"""A place that studies are taken from."""

from pathlib import Path

import pytest

from experiments.analysis.leaderboard import best_runs
from experiments.context import TrainingContext
from experiments.promotion import Request, promote
from experiments.transfer.outgoing import export
from tests.transfer.places import WHEN, search_in, storage_in, store_in


@pytest.fixture(scope="session")
def there(tmp_path_factory: pytest.TempPathFactory, context: TrainingContext) -> Path:
    """A place with a study of three trials, whose best is champion, and a file of it."""
    state = tmp_path_factory.mktemp("there")
    search_in(state, context)
    store = store_in(state)
    promote(store, best_runs(store, "s", 1)[0], Request(WHEN))
    written = export(store, storage_in(state), "s", state / "s.zip")
    assert (written.studies, written.trials, written.models, written.lost) == (["s"], 3, 3, [])
    return state
