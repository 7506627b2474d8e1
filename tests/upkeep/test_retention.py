"""`--keep` and `--disk`: which weights stay, what the others leave, and that these can be made again to the same bytes."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.analysis.leaderboard import best_runs
from experiments.context import TrainingContext
from experiments.promotion import Request, promote
from experiments.registry.versions import download_model
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from experiments.upkeep.retention import Retention
from experiments.upkeep.weights import size_of_artifacts
from speaker.common.cli import byte_size
from speaker.common.errors import UserError
from speaker.model.saved_model import WEIGHTS
from tests.helpers import ROOT, STUDY, assert_whole, environment, refused, run
from tests.models import finished_run, some_hits
from train_trial import chosen_point, parser

SHARES = (0.9, 0.1, 0.7, 0.3, 0.5)  # the accuracies of trials 0 to 4
BEST_FIRST = [0, 2, 4, 3, 1]


@pytest.fixture
def store(state: Path, context: TrainingContext) -> TrackingStore:
    """A store with a study of five complete trials."""
    store = TrackingStore(f"sqlite:///{state}/mlflow.db")
    parent = store.open_study("s", "id", None, {"seed": "0"}, {}, context)
    for number, share in enumerate(SHARES):
        hits = some_hits(share, 100, 7)
        finished_run(store, context, number, hits, **{names.PARENT: parent})
    return store


def kept(store: TrackingStore) -> list[int]:
    """Return the trials whose weights can be used, having seen that the others say why not."""
    found = []
    for run_of in store.trial_runs("s"):
        number = int(run_of.data.tags[names.TRIAL])
        folder = Path(run_of.info.artifact_uri.removeprefix("file://"), names.MODEL_FOLDER)
        assert folder.exists() == (names.REMOVED not in run_of.data.tags)
        found += [number] * folder.exists()
    return found


@pytest.mark.parametrize("count", range(1, 7))
def test_the_best_are_kept(store: TrackingStore, count: int) -> None:
    Retention(keep=count)(store, "s")
    assert kept(store) == sorted(BEST_FIRST[:count])


def test_nothing_goes_unless_that_is_asked_for(store: TrackingStore) -> None:
    Retention()(store, "s")
    assert kept(store) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("models", range(6))
def test_the_disk_bounds_the_bytes(store: TrackingStore, models: int) -> None:
    runs = [*store.study_runs("s"), *store.trial_runs("s")]
    whole = sum(size_of_artifacts(store, each) for each in runs)
    each = size_of_artifacts(store, runs[-1], weights_only=True)
    retention = Retention(disk=whole - 5 * each + models * each)
    retention(store, "s")
    assert kept(store) == sorted(BEST_FIRST[: max(1, models)]), "the winner's stay"
    runs = [*store.study_runs("s"), *store.trial_runs("s")]
    is_below = sum(size_of_artifacts(store, each) for each in runs) <= (retention.disk or 0)
    assert is_below == (models > 0)
    assert ("above --disk" in retention.describe(store, "s")) == (not is_below)


def test_registered_models_keep_their_runs_weights(store: TrackingStore) -> None:
    ranked = best_runs(store, "s", 5)
    promote(store, ranked[4], Request("2026-11-28 04:00:00 UTC"))
    promote(store, ranked[3], Request("2026-11-28 04:00:00 UTC", "challenger"))
    Retention(keep=1, disk=1)(store, "s")
    assert kept(store) == sorted([BEST_FIRST[0], *BEST_FIRST[3:]])
    store.client.delete_registered_model_alias(names.MODEL, "challenger")
    Retention(keep=1, disk=1)(store, "s")
    assert kept(store) == sorted([BEST_FIRST[0], *BEST_FIRST[3:]]), (
        "a version is one without a name"
    )


def test_what_is_removed_leaves_a_note(
    store: TrackingStore, context: TrainingContext, tmp_path: Path
) -> None:
    before = {each.info.run_id: each for each in store.trial_runs("s")}
    Retention(keep=4)(store, "s")
    (gone,) = (each for each in store.trial_runs("s") if names.REMOVED in each.data.tags)
    tags = gone.data.tags
    for words in (
        tags[names.SHA256],
        f"best/whole {gone.data.metrics['best/whole']:.4f}",
        "--keep",
    ):
        assert words in tags[names.REMOVED]
    assert tags[names.SHA256] == before[gone.info.run_id].data.tags[names.SHA256]
    python, script, *flags = shlex.split(tags[names.AGAIN])
    assert (python, script) == ("python", "train_trial.py")
    arguments = parser().parse_args(flags)
    assert arguments.data == context.corpus.folder
    values = {key: str(value) for key, value in chosen_point(arguments).to_dict().items()}
    assert values == gone.data.params
    assert tags[names.AGAIN] in tags[names.DESCRIPTION]
    assert tags[names.AGAIN] in refused(
        lambda: download_model(store, gone.info.run_id, tmp_path / "model")
    )
    Retention(keep=4)(store, "s")
    assert store.client.get_run(gone.info.run_id).data.tags == tags, "once is enough"


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2_000_000_000), ("500mb", 500_000_000), ("1.5GiB", 3 << 29), ("7", 7), ("1 kB", 1000),
     ("3B", 3)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["0", "-1", "2XB", "GB", "1e9", "0.1", "", "2GBB", "nan"])
def test_bad_sizes_are_one_clear_line(text: str) -> None:
    with pytest.raises((UserError, Exception), match="must be a size such as"):
        byte_size(text)


@pytest.mark.slow
def test_a_search_that_keeps_one_is_killed_and_goes_on(home: Path) -> None:
    """Killed after a note and before its files go; then by two processes; then a removed one is trained again."""
    search = (
        "--data",
        "corpus",
        "--steps",
        "5",
        "--choices",
        "d_model=80",
        "--choices",
        "num_layers=1",
    )
    command = [sys.executable, str(ROOT / "tests" / "kill_at.py"), "delete_artifacts", "search"]
    killed = subprocess.run(
        [*command, *search, "--trials", "3", "--keep", "1"], cwd=home, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db")
    (noted,) = (each for each in store.trial_runs(STUDY) if names.REMOVED in each.data.tags)
    assert store.client.list_artifacts(noted.info.run_id, names.MODEL_FOLDER), "the note came first"
    done = run(home, "search.py", *search, "--trials", 4, "--keep", 1, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert "The weights of 1 trials are kept" in done.stdout
    assert "3 trials say how to make theirs again." in done.stdout
    assert_whole(home, 4)
    found = list((home / "mlruns" / "artifacts").rglob(WEIGHTS))
    assert [path.parts[-4] for path in found] == best_runs(store, STUDY, 1)
    said = run(home, *shlex.split(noted.data.tags[names.AGAIN])[1:])
    assert said.returncode == 0, said.stderr
    (again,) = store.runs("tags.state = 'complete' and tags.`study` IS NULL")[-1:]
    assert again.data.tags[names.SHA256] == noted.data.tags[names.SHA256]
