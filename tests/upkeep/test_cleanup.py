"""In whatever order runs, studies and versions are deleted and cleaned up: the registered model predicts, and a trial that
was interrupted is resumed from its checkpoint.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import optuna
import pytest
import torch
from tqdm import tqdm

from experiments.analysis.leaderboard import best_runs
from experiments.context import TrainingContext
from experiments.promotion import Request, demote, promote
from experiments.registry.versions import download_model, find_version, versions_of
from experiments.study.search import StudyWorker
from experiments.study.storage import open_storage
from experiments.study.trial import run_trial
from experiments.tracking.names import CHAMPION, MODEL
from experiments.tracking.run import TrackedRun
from experiments.tracking.store import TrackingStore
from experiments.upkeep.cleanup import Found, describe_leftovers, find_leftovers
from experiments.upkeep.leftovers import size_of
from experiments.upkeep.moved import bring_home
from experiments.upkeep.restored import restore_experiment, restore_study
from experiments.verbs.repair import restore_run, restore_runs
from speaker.common.errors import UserError
from speaker.common.signals import Interrupted
from speaker.model.saved_model import load_model
from speaker.training import checkpoint
from speaker.training.metrics import Metrics
from tests.helpers import refused
from tests.models import finished_run
from tests.transfer.places import SETTINGS, WHEN, search_in, storage_in, store_in, worker_in

OTHER, OPEN = replace(SETTINGS, name="other", trials=2), replace(SETTINGS, name="open", trials=2)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, context: TrainingContext) -> Path:
    """A state folder with two versions of study s, of which the second is champion, the study
    `other`, and the study `open`, whose last trial was interrupted.
    """
    state = tmp_path_factory.mktemp("template") / "mlruns"
    context = at(state, context)
    for settings in (SETTINGS, OTHER):
        search_in(state, context, settings)
    store = store_in(state)
    first, second, _ = best_runs(store, "s", 3)
    promote(store, first, Request(WHEN))
    promote(store, second, Request(WHEN, reason="a test"))
    interrupt(state, context)
    shutil.copytree(context.pack.folder, state / "packs" / context.pack.folder.name)
    return state


def at(state: Path, context: TrainingContext) -> TrainingContext:
    return replace(context, checkpoints=state / "checkpoints")


def interrupt(state: Path, context: TrainingContext) -> None:
    """Run the first trial of the study `open`, and stop the second after a checkpoint."""
    worker = worker_in(state, context, OPEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "MIN_INTERVAL_S", 0.0)
        log = TrackedRun.log

        def stop(run: TrackedRun, step: int, metrics: Metrics) -> None:
            log(run, step, metrics)
            if step == 4 and trial.number == 1:
                raise Interrupted(2)

        patch.setattr(TrackedRun, "log", stop)
        with pytest.raises(Interrupted):
            for trial in worker.trials():
                run_trial(worker.shared, trial, tqdm(disable=True))
    worker.close()
    assert list((state / "checkpoints").iterdir())


@pytest.fixture
def state(template: Path, tmp_path: Path) -> Path:
    """A copy of the state folder, at home where it is."""
    copied = Path(shutil.copytree(template, tmp_path / "mlruns"))
    bring_home(copied / "mlflow.db")
    return copied


def collect(state: Path) -> Found:
    """Remove all leftovers, as --delete does."""
    found = find_leftovers(store_in(state), storage_in(state), state)
    for leftover in found.leftovers:
        leftover.remove()
    return found


def delete_runs(state: Path) -> None:
    """Delete all runs of study s, those of versions too."""
    store = store_in(state)
    for run in store.trial_runs("s"):
        store.client.delete_run(run.info.run_id)


def delete_study(state: Path) -> None:
    store = store_in(state)
    for run in [*store.study_runs("other"), *store.trial_runs("other")]:
        store.client.delete_run(run.info.run_id)


def demote_champion(state: Path) -> None:
    with contextlib.suppress(UserError):  # there may be no version before
        demote(store_in(state), Request(WHEN))


def delete_version(state: Path) -> None:
    """Delete a version that is not champion."""
    store = store_in(state)
    champion = find_version(store, CHAMPION)
    assert champion is not None
    for version in versions_of(store):
        if version.version != champion.version:
            store.client.delete_model_version(MODEL, version.version)


DELETIONS: dict[str, Callable[[Path], object]] = {
    "runs": delete_runs,
    "study": delete_study,
    "demote": demote_champion,
    "version": delete_version,
    "gc": collect,
}


def assert_usable(state: Path, context: TrainingContext) -> None:
    """The champion predicts, also made again from its run, and the open trial resumes."""
    store = store_in(state)
    answers = []
    for _ in range(2):
        download_model(store, CHAMPION, state.parent / "champion")
        with torch.inference_mode():
            model = load_model(state.parent / "champion").model
            answers.append(model(torch.zeros(1, 7, 40), torch.tensor([7])))
    assert torch.equal(*answers)
    worker = worker_in(state, at(state, context), OPEN)
    assert resume(worker) == [1]


def resume(worker: StudyWorker) -> list[int]:
    """Run what is open, from its checkpoint; return the numbers."""
    numbers = []
    for trial in worker.trials():
        config = worker.shared.config(trial)
        run_id = trial.user_attrs["mlflow.run_id"]
        found = worker.shared.context.checkpoint(run_id, config).load()
        assert found is not None
        assert found[0].step > 0
        run_trial(worker.shared, trial, tqdm(disable=True))
        numbers.append(trial.number)
    worker.close()
    return numbers


EVERY_ORDER = list(permutations(DELETIONS))
# Six of them stand for all 120, which take a quarter of an hour.
ORDERS = EVERY_ORDER[::23] if "ALL_ORDERS" not in os.environ else EVERY_ORDER


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_every_order_of_deletion(
    state: Path, context: TrainingContext, order: tuple[str, ...]
) -> None:
    for name in order:
        DELETIONS[name](state)
    collect(state)
    assert find_leftovers(store_in(state), storage_in(state), state).leftovers == []
    assert_usable(state, context)


def test_a_version_is_made_again_from_its_deleted_run(state: Path, tmp_path: Path) -> None:
    delete_runs(state)
    found = collect(state)
    assert "2 deleted runs that registered models or open trials need" in found.stays
    store = store_in(state)
    place = store.client.get_model_version_download_uri(MODEL, "2").removeprefix("file://")
    shutil.rmtree(place)
    assert download_model(store, CHAMPION, tmp_path / "champion")


def test_what_is_left_is_listed_and_then_removed(state: Path) -> None:
    delete_study(state)
    delete_version(state)
    store = store_in(state)
    deleted = store.runs("", 2)
    orphan = state / "artifacts" / ("e" * 32)
    orphan.mkdir()
    (orphan / "weights").write_bytes(bytes(1000))
    run_id = deleted[0].info.run_id
    for name in (
        f"{run_id}.checkpoint",
        f".{run_id}.checkpoint.7.partial",
        "f" * 32 + ".checkpoint",
    ):
        (state / "checkpoints" / name).write_bytes(bytes(10))
    unused = Path(shutil.copytree(next((state / "packs").iterdir()), state / "packs" / "unused"))
    about = (unused / "pack.json").read_text()
    digest = about.partition('"digest":')[2].split('"')[1]
    (unused / "pack.json").write_text(about.replace(digest, "0" * 64))
    (state / "packs" / ".half.partial").mkdir()
    before = size_of(state)
    found = find_leftovers(store, storage_in(state), state)
    said = describe_leftovers(found, is_dry=True)
    counts = {
        line.rsplit(maxsplit=2)[0].strip(): line.split()[-2] for line in said.splitlines()[1:9]
    }
    assert counts == {
        "studies of deleted runs": "1", "checkpoints": "2", "locks": "5", "deleted runs": "3",
        "models of no version": "1", "files of no run": "1", "packs": "2", "all": "15",
    }, said  # fmt: skip
    assert "Stays: 1 checkpoints of runs that are not in this store." in said
    assert said.endswith("Nothing was removed: --delete removes it.")
    assert size_of(state) == before
    collect(state)
    assert not [path for path in state.rglob("*") if run_id in path.name or path.name == "e" * 32]
    assert [path.name for path in (state / "packs").iterdir() if not path.name.startswith(".")] == [
        each.name for each in (state / "packs").iterdir() if (each / "pack.json").exists()
    ]
    assert not unused.exists()
    assert not (state / "locks" / "optuna" / "other").exists()
    assert (state / "checkpoints" / ("f" * 32 + ".checkpoint")).exists()
    storage = open_storage(storage_in(state))
    assert sorted(optuna.get_all_study_names(storage)) == ["open", "s"]
    storage.engine.dispose()
    assert describe_leftovers(collect(state), is_dry=False).startswith(
        "There is nothing to remove."
    )


def test_files_that_another_store_may_know_stay(state: Path, context: TrainingContext) -> None:
    """Two databases of one folder keep their artifacts in one place."""
    other = TrackingStore(f"sqlite:///{state}/second.db")
    run_id, _ = finished_run(other, context, 0, "111000")
    found = collect(state)
    assert found.stays == ["packs and files of no run, which second.db may know"]
    assert download_model(other, run_id, state.parent / "model")


def test_what_was_restored_meanwhile_stays(state: Path) -> None:
    delete_study(state)
    store = store_in(state)
    found = find_leftovers(store, storage_in(state), state)
    for run in store.runs("", 2):
        store.client.restore_run(run.info.run_id)
    for leftover in found.leftovers:
        if leftover.kind == "deleted runs":
            leftover.remove()
    assert len(store.trial_runs("other")) == 2
    assert download_model(store, best_runs(store, "other", 1)[0], state.parent / "model")


def test_a_deleted_experiment_is_restored_and_nothing_is_lost(
    state: Path, context: TrainingContext
) -> None:
    store = store_in(state)
    store.client.delete_experiment(store.experiment_id)
    assert "python -m experiments restore" in refused(lambda: collect(state))
    assert restore_experiment(store.uri)
    collect(state)
    assert_usable(state, context)


def test_a_study_whose_run_was_deleted_keeps_it_while_a_trial_is_open(
    state: Path, context: TrainingContext
) -> None:
    store = store_in(state)
    (parent,) = store.study_runs("open")
    store.client.delete_run(parent.info.run_id)
    collect(state)
    for call in (
        lambda: worker_in(state, at(state, context), OPEN),
        lambda: best_runs(store, "open", 1),
    ):
        assert "python -m experiments restore --study open" in refused(call)
    assert restore_study(store, "open") == 1
    assert_usable(state, context)


def test_a_deleted_run_is_named_and_restored(state: Path, tmp_path: Path) -> None:
    store = store_in(state)
    run_id = best_runs(store, "other", 1)[0]
    store.client.delete_run(run_id)
    said = refused(lambda: download_model(store, run_id, tmp_path / "model"))
    assert f"python -m experiments restore --run {run_id}" in said
    assert f"Run {run_id} is there." == restore_run(store, run_id)
    assert download_model(store, run_id, tmp_path / "model")
    delete_study(state)
    assert restore_runs(store, None).endswith("--study is one of other.")
    assert restore_runs(store, "other") == "3 deleted runs of study other are back."
    assert best_runs(store, "other", 1) == [run_id]


def test_a_trial_whose_run_was_deleted_starts_over(
    state: Path, context: TrainingContext, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_in(state)
    old = store.trial_runs("open")[1].info.run_id
    store.client.delete_run(old)
    collect(state)
    assert not list((state / "checkpoints").iterdir())
    worker = worker_in(state, at(state, context), OPEN)
    for trial in worker.trials():
        run_trial(worker.shared, trial, tqdm(disable=True))
    worker.close()
    assert f"#1 starts over in a new run: its run {old} was deleted" in capsys.readouterr().out
    assert [run.data.tags["state"] for run in store.trial_runs("open")] == ["complete"] * 2
    assert restore_study(store, "open") == 0, "its trial has another run by now"
