"""An import that is killed with SIGKILL leaves no half study: the same command goes on and ends as if nothing had been."""

import shutil
import signal
from pathlib import Path

import pytest

from experiments.analysis.leaderboard import best_runs
from experiments.registry.versions import download_model, find_version
from experiments.tracking.names import CHAMPION
from experiments.upkeep.moved import bring_home
from tests.helpers import refused
from tests.transfer.places import rows_in, store_in, trials_in
from tests.warm import run_warm

pytestmark = pytest.mark.slow

# In the order of an import; each is killed before it does anything.
HIDDEN = ("create_run", "log_inputs", "log_artifacts", "set_terminated")
STEPS = (
    *HIDDEN,
    "add_trials",
    "set_metric_names",
    "set_experiment_tag",
    "create_model_version",
    "set_registered_model_alias",
)


@pytest.fixture
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where a user stands, with stores that are empty: making them takes seconds."""
    empty = tmp_path_factory.getbasetemp() / "empty"
    if not empty.exists():
        store_in(empty)
    shutil.copytree(empty, tmp_path / "mlruns")
    bring_home(tmp_path / "mlruns" / "mlflow.db")
    return tmp_path


@pytest.mark.parametrize("step", STEPS)
def test_an_import_that_is_killed_goes_on(there: Path, home: Path, step: str) -> None:
    killed = run_warm(home, "tests/kill_at.py", step, "experiments", "import", there / "s.zip")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = home / "mlruns"
    if step in HIDDEN:
        assert "there is no study" in refused(lambda: rows_in(state))
        assert store_in(state).runs("tags.kind = 'trial'") == []
    else:
        assert rows_in(state) == rows_in(there)
    done = run_warm(home, "experiments", "import", there / "s.zip")
    assert done.returncode == 0, done.stderr
    assert rows_in(state) == rows_in(there)
    assert trials_in(state) == trials_in(there)
    store = store_in(state)
    champion = find_version(store, CHAMPION)
    assert champion is not None
    assert champion.run_id == best_runs(store, "s", 1)[0]
    assert download_model(store, CHAMPION, home / "champion")
    again = run_warm(home, "experiments", "import", there / "s.zip")
    assert "nothing changed" in again.stdout, again.stderr
