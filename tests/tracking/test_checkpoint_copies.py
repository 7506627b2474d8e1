"""Copies of checkpoints on a real MLflow server: another machine goes on with them."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from experiments.context import TrainingContext
from experiments.engines.engine import Noted, Said
from experiments.engines.worker import work
from experiments.proposals.attributes import RUN_ID
from experiments.proposals.space import HOMEWORK
from experiments.study import trial as trial_module
from experiments.study.search import StudyWorker, WorkerSpec
from experiments.study.trial import listen
from experiments.tracking import names
from experiments.tracking.checkpoint_copies import FOLDER, CheckpointCopies
from speaker.common.signals import Interrupted
from speaker.training import checkpoint, train
from speaker.training.metrics import Metrics
from speaker.training.train import Report
from tests.helpers import PLAN
from tests.servers import free_port, serve, stop

SMALL = HOMEWORK.narrowed({"d_model": 80, "num_layers": 1}, {})
SEARCH = replace(PLAN, space=SMALL, presets=(), trials=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    process = serve(tmp_path_factory.mktemp("server"), port)
    yield f"http://127.0.0.1:{port}"
    stop(process)


def at(folder: Path, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "run.checkpoint"
    path.write_bytes(data)
    return path


def test_the_last_copy_is_fetched_unless_the_own_file_is_later(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    uri = (tmp_path / "artifacts").as_uri()
    first = CheckpointCopies(uri, "")
    for step in (5, 12):
        path = at(here, b"of step %d" % step)
        first.send(path, step)
        path.write_bytes(b"of a later step")  # what is sent is what was there
        first.flush(at(here, b"of step %d" % step), step)
    second = CheckpointCopies(uri, "")
    path = at(there, b"own")
    second.fetch(path, 12)
    assert path.read_bytes() == b"own"
    second.fetch(path, 11)
    assert path.read_bytes() == b"of step 12"
    assert [each.name for each in (tmp_path / "artifacts" / FOLDER).iterdir()] == [
        "step-12.checkpoint"
    ]
    assert [each.name for each in here.iterdir()] == ["run.checkpoint"], "nothing half-made is left"
    second.remove()
    assert not list((tmp_path / "artifacts" / FOLDER).iterdir())


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt the first training at the step after one that is evaluated, as SIGTERM does."""
    seen: list[int] = []

    def listening(trial: optuna.trial.Trial, prune_presets: bool) -> Report:
        report = listen(trial, prune_presets)

        def reported(at: int, metrics: Metrics) -> bool:
            answer = report(at, metrics)
            if at == step and not seen:
                seen.append(at)
                signal.raise_signal(signal.SIGTERM)
            return answer

        return reported

    monkeypatch.setattr(trial_module, "listen", listening)


def searched(worker: StudyWorker) -> list[str]:
    notes: list[str] = []

    def hear(said: Said) -> None:
        notes.extend([said.text] if isinstance(said, Noted) else [])

    work(worker, hear)
    return notes


@pytest.mark.slow
@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("copied", [True, False], ids=("with a copy", "without"))
def test_a_trial_goes_on_on_another_machine(
    server: str,
    context: TrainingContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    copied: bool,
) -> None:
    name = f"moved-{copied}"
    here, there = (
        WorkerSpec(
            replace(SEARCH, name=name),
            replace(context, checkpoints=tmp_path / machine),
            f"sqlite:///{tmp_path}/optuna.db",
            server,
        )
        for machine in ("here", "there")
    )
    interrupt_after(monkeypatch, 2)
    worker = here.open()
    with pytest.raises(Interrupted):
        work(worker, lambda _said: None)
    (trial,) = worker.study.get_trials()
    run = worker.shared.store.client.get_run(trial.user_attrs[RUN_ID])
    copies = CheckpointCopies(run.info.artifact_uri, server)
    assert [*copies._steps()] == [2], "an interruption saves, and sends what it saved"
    if not copied:
        copies.remove()

    steps: list[int] = []
    step = train._Loop.step

    def noted(loop: train._Loop) -> None:
        steps.append(loop.state.step)
        step(loop)

    monkeypatch.setattr(train._Loop, "step", noted)
    notes = searched(there.open())
    assert steps == ([2, 3] if copied else [0, 1, 2, 3])
    over = ["#0 starts over: no checkpoint of it is found here"] * (not copied)
    assert notes == over
    run = worker.shared.store.client.get_run(run.info.run_id)
    assert (names.STARTED_OVER in run.data.tags) == (not copied)
    assert run.info.status == "FINISHED"
    assert not copies._steps(), "copies go with the end of the trial"
    assert not [*(tmp_path / "there").glob("*")]

    alone = WorkerSpec(
        SEARCH, context, f"sqlite:///{tmp_path}/o.db", f"sqlite:///{tmp_path}/m.db"
    ).open()
    searched(alone)
    (other,) = alone.shared.store.trial_runs("s")
    assert other.data.tags[names.SHA256] == run.data.tags[names.SHA256]


def test_a_copy_that_cannot_be_sent_does_not_stop_a_training(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file where a folder should be")
    copies = CheckpointCopies((tmp_path / "artifacts").as_uri(), "")
    path = at(tmp_path / "here", b"state")
    copies.flush(path, 3)
    assert not copies.is_sending()
    assert path.read_bytes() == b"state"


def test_copies_take_their_fraction_of_the_time(tmp_path: Path) -> None:
    copies = CheckpointCopies((tmp_path / "artifacts").as_uri(), "")
    now = [0.0]
    saved = checkpoint.Checkpoint(tmp_path / "run.checkpoint", {}, lambda: now[0], copies=copies)
    copies.seconds = 1.0
    now[0] = 49.0
    assert not saved.due()
    now[0] = 51.0
    assert saved.due()
