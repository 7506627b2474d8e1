"""The doctor invents nothing on healthy studies, leaves the living ones alone, and lets what failed be run again."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from tqdm import tqdm

from experiments.context import TrainingContext
from experiments.proposals.attributes import REPEATS
from experiments.proposals.finalists import finalists
from experiments.proposals.presets import Preset
from experiments.study.locks import ALIVE, open_locks
from experiments.study.search import StudyWorker
from experiments.study.settings import SearchSettings
from experiments.study.stopping import Limit
from experiments.study.trial import run_trial
from experiments.tracked_training import TrackedTraining
from experiments.tracking import names
from experiments.transfer.outgoing import export
from experiments.upkeep.doctor.checks import examine, mend, sweep
from experiments.upkeep.doctor.reruns import rerun_failed
from experiments.upkeep.doctor.survey import Place
from experiments.upkeep.moved import bring_home
from experiments.upkeep.retention import Retention
from speaker.common.errors import UserError
from speaker.config import TrialConfig
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult
from tests.helpers import TINY, refused
from tests.test_older_versions import home as old
from tests.transfer.places import (
    NARROW,
    SETTINGS,
    search_in,
    storage_in,
    store_in,
    take_to,
    worker_in,
)
from tests.upkeep.damages import Scene
from tests.upkeep.test_cleanup import at
from tests.upkeep.test_doctor import look, place_of

__all__ = ["old"]  # a fixture

NEW = replace(SETTINGS, name="new", trials=2)
OPEN = ("interrupted", "open #1")


def begin(scene: Scene, context: TrainingContext) -> None:
    worker_in(scene.state, context, NEW).close()


def prune(scene: Scene, context: TrainingContext) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.trial.Trial, "should_prune", lambda _trial: True)
        worker = search_in(scene.state, context, NEW)
    assert {trial.state for trial in worker.finished()} == {TrialState.PRUNED}


def collapse(scene: Scene, context: TrainingContext) -> None:
    hot = TINY.replace(steps=20, warmup_steps=0, valid_every=10, lr=30.0)
    worker = search_in(scene.state, context, replace(NEW, base=hot, rescue=True, trials=3))
    assert {trial.user_attrs["outcome"] for trial in worker.finished()} == {"collapsed"}


def keep(scene: Scene, context: TrainingContext) -> None:
    search_in(scene.state, context, NEW)
    Retention(keep=1)(scene.store, "new")
    assert any(names.REMOVED in run.data.tags for run in scene.store.trial_runs("new"))


def race(scene: Scene, context: TrainingContext) -> None:
    points = [
        TrialConfig.from_dict({**NEW.base.to_dict(), "d_model": 80, "nhead": n}) for n in (1, 2)
    ]
    presets = finalists(NARROW, [point.replace(num_layers=1) for point in points], 2)
    settings = replace(
        NEW, trials=4, presets=presets, is_race=True, confirms="s", above=scene.parent
    )
    search_in(scene.state, context, settings)
    assert len(scene.store.study_runs("new")) == 1


def bring(scene: Scene, context: TrainingContext) -> None:
    file = scene.state / "s.zip"
    export(scene.store, storage_in(scene.state), "s", file)
    take_to(scene.state, file, "taken")
    search_in(scene.state, context, replace(SETTINGS, name="taken", trials=4))


def take_elsewhere(scene: Scene, _context: TrainingContext) -> None:
    """A study that was taken in, and of which no search has been run here."""
    file = scene.state / "s.zip"
    export(scene.store, storage_in(scene.state), "s", file)
    take_to(scene.state, file, "taken")


def two(scene: Scene, context: TrainingContext) -> None:
    for name in ("one", "two"):
        search_in(scene.state, context, replace(NEW, name=name, trials=1))


def move(scene: Scene, _context: TrainingContext) -> None:
    shutil.copytree(scene.state, scene.state.parent / "there")
    shutil.rmtree(scene.state)
    (scene.state.parent / "there").rename(scene.state)
    bring_home(scene.state / "mlflow.db")


def alone(scene: Scene, context: TrainingContext) -> None:
    """A run of train_trial.py that ended, with its lock, and one that was interrupted."""
    scene.store.open_run("d16", {}).close("interrupted")
    run = scene.store.open_run("d16", {})
    run.log_setup(TINY, context)
    run.close("failed")
    (scene.state / "locks" / "runs").mkdir(exist_ok=True)
    (scene.state / "locks" / "runs" / f"{run.run_id}.lock").touch()


HEALTHY: tuple[Callable[[Scene, TrainingContext], None], ...] = (
    begin, prune, collapse, keep, race, bring, take_elsewhere, two, move, alone,
)  # fmt: skip


@pytest.mark.parametrize("add", HEALTHY, ids=lambda add: add.__name__)
def test_nothing_is_invented(
    scene: Scene, context: TrainingContext, add: Callable[[Scene, TrainingContext], None]
) -> None:
    """Beside a study with a champion and one that was interrupted."""
    add(scene, at(scene.state, context))
    assert [(each.kind, each.where) for each in look(scene.state)] == [OPEN]


def test_a_folder_without_a_search_is_healthy(state: Path) -> None:
    assert look(state) == []
    assert not (state / "optuna.db").exists()


@pytest.mark.parametrize("name", [ALIVE, "study", "trial-1", "trial-0"])
def test_a_living_search_is_left_alone(scene: Scene, name: str) -> None:
    """Whichever of its locks it holds just then."""
    scene.end(scene.open_run, "running", "RUNNING")
    with open_locks(storage_in(scene.state), "open").sharing(name):
        found = look(scene.state)
        assert [(each.kind, each.where, each.is_fault) for each in found] == [
            ("running", "open", False)
        ]
        assert mend(place_of(scene.state))[0] == []
    assert [each.kind for each in look(scene.state)] == ["stranded"]


def test_one_study_alone_is_looked_at(scene: Scene) -> None:
    scene.end(scene.run(), "running", "RUNNING")
    place = place_of(scene.state)
    assert [each.kind for each in examine(place, "s")] == ["run left open"]
    assert [each.kind for each in examine(place, "open")] == ["interrupted"]
    assert "there is no study 'never'" in refused(lambda: examine(place, "never"))


def test_a_search_sweeps_before_it_begins(scene: Scene) -> None:
    left = [scene.checkpoint.with_stem(scene.run()), scene.state / "packs" / ".x.partial"]
    for path in left:
        path.touch()
    scene.end(scene.run(), "running", "RUNNING")
    url = storage_in(scene.state)
    study = optuna.load_study(study_name="s", storage=url)
    place = scene.store, url, scene.state, study
    (number,) = (n for n in range(3) if study.trials[n].user_attrs["mlflow.run_id"] == scene.run())
    with open_locks(url, "s").holding(f"trial-{number}"):
        assert sweep(*place) == [".x.partial: it was never finished; removes it"]
    assert len(sweep(*place)) == 2
    assert sweep(*place) == []
    assert not any(path.exists() for path in left)
    assert scene.checkpoint.exists()
    assert [(each.kind, each.where) for each in look(scene.state)] == [OPEN]


def fail_one(state: Path, context: TrainingContext, number: int) -> StudyWorker:
    """Run a study of which one trial fails."""
    worker = worker_in(state, context, NEW)
    train = TrackedTraining.train

    def failing(training: TrackedTraining, *rest: object) -> TrialResult:
        if training.run._name.startswith(f"#{number} "):
            failed = TrialResult(Outcome.FAILED, "a device was lost")
            training.run.log_setup(training.config, training.context)
            training.end(failed)
            return failed
        return train(training, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrackedTraining, "train", failing)
        for trial in worker.trials():
            run_trial(worker.shared, trial, tqdm(disable=True))
    worker.close()
    return worker


def test_a_failed_trial_is_run_again_in_its_place(state: Path, context: TrainingContext) -> None:
    worker = fail_one(state, context, 0)
    first, second = worker.study.get_trials()
    assert [first.state, second.state] == [TrialState.FAIL, TrialState.COMPLETE]
    assert [(each.kind, each.where) for each in look(state)] == [("failed", "new #0")]
    place = Place(store_in(state), storage_in(state), state)
    said = ["new: #0 will be run again by the search's own command."]
    assert rerun_failed(place, "new") == said
    assert rerun_failed(place, None) == [], "once"
    again = worker_in(state, context, NEW)
    assert (again.missing(), len(again.finished()), again.ended_by()) == (1, 1, Limit.TIMEOUT)
    search_in(state, context, NEW)
    assert again.ended_by() == Limit.TRIALS
    repeated = again.study.get_trials()[2]
    assert (repeated.user_attrs[REPEATS], repeated.state) == (0, TrialState.COMPLETE)
    assert again.shared.config(repeated) == again.shared.config(first)
    assert [trial.number for trial in again.finished()] == [1, 2]
    assert look(state) == []
    store = store_in(state)
    assert store.trial_runs("new", "tags.trial = '2'")[0].data.tags[names.REPEATS] == "0"
    assert store.study_runs("new")[0].data.tags["state"] == "complete"
    with pytest.raises(UserError, match="--rerun-failed needs a study"):
        rerun_failed(place, "never")


def test_presets_that_are_left_are_not_skipped_for_a_repetition(
    state: Path, context: TrainingContext
) -> None:
    presets = tuple(
        Preset(str(n), {"nhead": n, "activation": "relu", "d_model": 80, "num_layers": 1})
        for n in (1, 2, 4)
    )
    settings: SearchSettings = replace(NEW, presets=presets)
    worker = worker_in(state, context, settings)
    for trial in worker.trials():
        run_trial(worker.shared, trial, tqdm(disable=True))
        break
    worker.close()
    url = storage_in(state)
    study = optuna.load_study(study_name="new", storage=url)
    study.enqueue_trial(study.trials[0].params, user_attrs={REPEATS: 0})
    search_in(state, context, replace(settings, trials=3))
    told = [trial.params["nhead"] for trial in worker.study.get_trials()]
    assert told == [1, 1, 2, 4]


@pytest.mark.slow
def test_what_an_older_version_left_is_healthy(old: Path) -> None:
    """But for one file, which was left out of the archive for its size."""
    (found,) = look(old / "mlruns")
    assert found.words.startswith("program.pt2 is missing in ")
