"""Promotion, demotion and repair, killed with SIGKILL between any two of their steps."""

import shutil
import signal
from pathlib import Path

import pytest
import torch

from experiments.context import TrainingContext
from experiments.promotion import Request, promote
from experiments.registry.versions import download_model, find_version
from experiments.tracking.names import CHAMPION, MODEL
from experiments.tracking.store import TrackingStore
from speaker.model.saved_model import load_model
from tests.models import finished_run
from tests.warm import run_warm

pytestmark = pytest.mark.slow

POOR, BEST = "1" * 5 + "0" * 15, "1" * 19 + "0"
WHEN = "2026-11-28 04:00:00 UTC"
# Each is killed before it does anything; together they are between any two steps.
STEPS = (
    "create_logged_model", "log_model_artifacts", "half", "create_model_version", "finalize_logged_model",
    "set_registered_model_tag", "set_registered_model_alias", "log_batch", "set_model_version_tag",
)  # fmt: skip


@pytest.fixture
def store(state: Path) -> TrackingStore:
    return TrackingStore(f"sqlite:///{state}/mlflow.db")


@pytest.fixture
def runs(store: TrackingStore, context: TrainingContext) -> list[str]:
    """The runs of a champion and of a worse model."""
    found = [
        finished_run(store, context, number, hits)[0] for number, hits in enumerate((BEST, POOR))
    ]
    promote(store, found[0], Request(WHEN))
    return found


def kill(folder: Path, step: str, *words: str) -> None:
    """Run a verb and see it killed before a step."""
    done = run_warm(folder, "tests/kill_at.py", step, "experiments", *words)
    assert done.returncode == -signal.SIGKILL, done.stderr


def assert_predicts(store: TrackingStore, folder: Path) -> str:
    """The champion loads, as plain MLflow would load it too, and predicts. Returns its version."""
    download_model(store, CHAMPION, folder)
    with torch.inference_mode():
        answer = load_model(folder).model(torch.zeros(1, 7, 40))
        version = str(find_version(store, CHAMPION).version)  # type: ignore[union-attr]
        place = store.client.get_model_version_download_uri(MODEL, version).removeprefix("file://")
        program = torch.export.load(Path(place, "artifacts", "program.pt2")).module()
        assert torch.allclose(program(torch.zeros(1, 7, 40), torch.tensor([7])), answer, atol=1e-5)
    return version


def assert_no_orphans(store: TrackingStore, state: Path) -> None:
    """Each logged model is finished and is a version's, and no other files lie about."""
    logged = store.client.search_logged_models([store.experiment_id])
    assert {each.status for each in logged} == {"READY"}
    versions = store.client.search_model_versions(f"name = '{MODEL}'")
    used = sorted(f"models:/{each.model_id}" for each in logged)
    assert used == sorted(each.source for each in versions)
    kept = [
        folder for folder in (state / "artifacts" / "models").iterdir() if any(folder.rglob("*.*"))
    ]
    assert sorted(folder.name for folder in kept) == sorted(each.model_id for each in logged)


@pytest.mark.parametrize("step", STEPS)
def test_a_promotion_killed_anywhere_is_completed_by_the_next(
    store: TrackingStore, runs: list[str], state: Path, tmp_path: Path, step: str
) -> None:
    words = ("promote", "--run", runs[1], "--force", "a test")
    kill(tmp_path, step, *words)
    has_moved = STEPS.index(step) > STEPS.index("set_registered_model_alias")
    assert assert_predicts(store, tmp_path / "one") == ("2" if has_moved else "1")
    said = promote(store, runs[1], Request(WHEN, reason="a test"))
    assert f"champion of {MODEL} is version 2" in said
    assert assert_predicts(store, tmp_path / "two") == "2"
    assert_no_orphans(store, state)
    kept = store.client.get_registered_model(MODEL).tags
    told = [
        value.partition(" on ")[0]
        for key, value in sorted(kept.items())
        if key.startswith("history.")
    ]
    assert told == ["version 1 promoted", "version 2 promoted"]
    version = store.client.get_model_version(MODEL, "2")
    assert "a test" in version.tags["forced"]
    assert "a test" in store.client.get_run(runs[1]).data.tags["forced"]
    assert version.tags["promoted"].startswith("champion since")


@pytest.mark.parametrize(
    "step", ["create_registered_model", "create_model_version", "set_registered_model_alias"]
)
def test_the_first_promotion_killed_anywhere_is_completed_by_the_next(
    store: TrackingStore, context: TrainingContext, state: Path, tmp_path: Path, step: str
) -> None:
    run_id, _ = finished_run(store, context, 0, POOR)
    kill(tmp_path, step, "promote", "--run", run_id)
    assert find_version(store, CHAMPION) is None
    promote(store, run_id, Request(WHEN))
    assert assert_predicts(store, tmp_path / "one") == "1"
    assert_no_orphans(store, state)


def test_what_another_promotion_left_is_removed_too(
    store: TrackingStore, context: TrainingContext, runs: list[str], state: Path, tmp_path: Path
) -> None:
    kill(tmp_path, "create_model_version", "promote", "--run", runs[1], "--force", "a test")
    better, _ = finished_run(store, context, 2, "1" * 20)
    promote(store, better, Request(WHEN, reason="another"))
    assert assert_predicts(store, tmp_path / "one") == "2"
    assert_no_orphans(store, state)


@pytest.mark.parametrize(
    "step", ["set_registered_model_tag", "set_registered_model_alias", "set_model_version_tag"]
)
def test_a_demotion_killed_anywhere_leaves_a_champion(
    store: TrackingStore, runs: list[str], tmp_path: Path, step: str
) -> None:
    promote(store, runs[1], Request(WHEN, reason="a test"))
    kill(tmp_path, step, "demote", "--reason", "why not")
    has_moved = step == "set_model_version_tag"
    assert assert_predicts(store, tmp_path / "one") == ("1" if has_moved else "2")
    done = run_warm(tmp_path, "experiments", "demote", "--reason", "why not")
    assert done.returncode == 0, done.stderr
    assert ("it is complete now" in done.stdout) is has_moved
    assert assert_predicts(store, tmp_path / "two") == "1"
    assert "why not" in store.client.get_model_version(MODEL, "2").tags["demoted"]
    again = run_warm(tmp_path, "experiments", "demote")
    assert again.returncode == 2, "version 1 is the first"


@pytest.mark.parametrize("step", ["delete_artifacts", "log_artifacts", "half"])
def test_a_repair_killed_anywhere_is_completed_by_the_next(
    store: TrackingStore,
    runs: list[str],
    tmp_path: Path,
    state: Path,
    capsys: pytest.CaptureFixture[str],
    step: str,
) -> None:
    place = store.client.get_model_version_download_uri(MODEL, "1").removeprefix("file://")
    shutil.rmtree(Path(place, "artifacts"))
    kill(tmp_path, step, "fetch", "--out", "model")
    assert assert_predicts(store, tmp_path / "one") == "1"
    assert_no_orphans(store, state)
    assert f"version 1 was made again from run {runs[0]}" in capsys.readouterr().err
