"""The doctor as a user calls it, and on PostgreSQL with an MLflow server."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tqdm import tqdm

from experiments.context import TrainingContext
from experiments.study.locks import ALIVE, open_locks
from experiments.study.search import WorkerSpec
from experiments.study.trial import run_trial
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from experiments.upkeep.doctor.checks import examine, mend
from experiments.upkeep.doctor.survey import Place
from tests.servers import free_port, serve, stop
from tests.transfer.places import SETTINGS
from tests.upkeep.damages import Scene
from tests.upkeep.test_cleanup import at
from tests.warm import run_warm

pytestmark = pytest.mark.slow


def test_a_user_asks_the_doctor(scene: Scene) -> None:
    home = scene.state.parent
    well = run_warm(home, "experiments", "doctor")
    assert well.returncode == 0, well.stderr
    assert well.stdout.splitlines()[0].split() == ["what", "where", "fault", "mended", "how"]
    assert "interrupted open #1 it was interrupted" in " ".join(well.stdout.split())
    assert well.stdout.endswith("Nothing is missing, doubled, stranded, damaged or left over.\n")
    scene.end(scene.run(), "running", "RUNNING")
    shutil.rmtree(scene.files(scene.run(), "model"))
    said = run_warm(home, "experiments", "doctor")
    assert said.returncode == 1, said.stderr
    assert said.stderr == ""
    assert said.stdout.endswith("2 faults left. --mend puts right what says so.\n")
    assert all(len(line) <= 110 for line in said.stdout.splitlines())
    scene.tag(scene.run(), weights__removed="a note")
    mended = run_warm(home, "experiments", "doctor", "--mend", "--rerun-failed")
    assert mended.returncode == 0
    assert mended.stdout.endswith("1 mended, 0 faults left.\n")
    unknown = run_warm(home, "experiments", "doctor", "--study", "never")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("error: there is no study 'never' in sqlite:///")


def test_where_nothing_was_searched_there_is_one_line(tmp_path: Path) -> None:
    done = run_warm(tmp_path, "experiments", "doctor")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there are no runs yet: ")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    process = serve(tmp_path, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def test_postgresql_and_a_server(
    postgres: str, server: str, state: Path, context: TrainingContext
) -> None:
    settings = replace(SETTINGS, name="doctor", trials=2)
    worker = WorkerSpec(settings, at(state, context), postgres, server).open()
    for trial in worker.trials():
        run_trial(worker.shared, trial, tqdm(disable=True))
    worker.close()
    worker.study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    store = TrackingStore(server)
    place = Place(store, postgres, state)
    assert examine(place, "doctor") == []
    first, second = (run.info.run_id for run in store.trial_runs("doctor"))
    (parent,) = store.study_runs("doctor")
    store.tag_run(first, {names.STATE: "running"})
    store.client.update_run(first, status="RUNNING")
    store.tag_run(second, {names.PARENT: first})
    store.client.delete_run(parent.info.run_id)
    checkpoint = state / "checkpoints" / f"{second}.checkpoint"
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.touch()
    store.client.log_text(first, "a copy", "checkpoint/step-2.checkpoint")
    kinds = {
        "run left open",
        "run misplaced",
        "study run deleted",
        "checkpoint left",
        "checkpoint's copy left",
    }
    for held in (ALIVE, "trial-1"):
        with open_locks(postgres, "doctor").sharing(held):
            assert [each.kind for each in examine(place, "doctor")] == ["running"]
            assert mend(place, "doctor")[0] == []
    assert {each.kind for each in examine(place, "doctor")} == kinds
    mended, left = mend(place, "doctor")
    assert {each.kind for each in mended} == kinds
    assert left == []
    assert not checkpoint.exists()
