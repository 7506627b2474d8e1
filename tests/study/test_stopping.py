"""What ends a search: --trials, --timeout, --patience, --budget."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from tqdm import tqdm

from experiments import tracked_training
from experiments.analysis.leaderboard import expectations, ranked
from experiments.context import TrainingContext
from experiments.engines.session import describe_end, describe_task, first_points
from experiments.study.search import StudyWorker, WorkerSpec
from experiments.study.settings import SearchSettings
from experiments.study.stopping import MARGIN, Expectations, Limit, has_stalled
from experiments.study.trial import run_trial
from experiments.tracking.store import TrackingStore
from speaker.config import TrialConfig
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult, train
from tests.helpers import PLAN
from tests.warm import run_warm

BETTER = 2 * MARGIN
MANY = replace(PLAN, trials=20)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a narrow model whatever was sampled; every third training is stopped half-way."""
    trained = []

    def train_narrow(config: TrialConfig, *rest: object) -> TrialResult:
        trained.append(config)
        result = train(config.replace(d_model=16, nhead=2, num_layers=1), *rest)  # type: ignore[arg-type]
        if len(trained) % 3:
            return result
        return replace(result, outcome=Outcome.PRUNED, steps=config.steps // 2)

    monkeypatch.setattr(tracked_training, "train", train_narrow)


def open_worker(
    state: Path, context: TrainingContext, settings: SearchSettings, by: Expectations | None = None
) -> StudyWorker:
    urls = f"sqlite:///{state}/optuna.db", f"sqlite:///{state}/mlflow.db"
    return WorkerSpec(settings, context, *urls, by).open()


def work(worker: StudyWorker) -> int:
    """Run trials to the end of the search; return how many."""
    count = 0
    with worker.closing():
        for trial in worker.trials():
            run_trial(worker.shared, trial, tqdm(disable=True))
            count += 1
    return count


def state_of(worker: StudyWorker) -> str:
    return str(worker._store.client.get_run(worker.shared.parent).data.tags["state"])


@pytest.mark.parametrize(
    ("expected", "stalled"),
    [
        ([0.5, 0.5, 0.5], True),
        ([0.5, 0.4, 0.5 + MARGIN / 2], True),
        ([0.5, 0.4, 0.5 + BETTER], False),
        ([0.5, 0.5 + BETTER, 0.4], False),
        ([0.5, 0.5 + BETTER, 0.4, 0.4], True),
        ([0.5, None, None], True),
        ([None, None, None], False),
        ([None, 0.1, 0.1], False),
        ([0.5, 0.5], False),
    ],
)
def test_two_trials_of_patience(expected: list[float | None], stalled: bool) -> None:
    known = {number: value for number, value in enumerate(expected) if value is not None}
    assert has_stalled(range(len(expected)), known, 2) == stalled


def test_patience_does_not_depend_on_the_order_in_which_trials_ended() -> None:
    expected = {0: 0.5, 1: 0.5, 2: 0.9, 3: 0.5, 4: 0.5}
    assert has_stalled([4, 2, 0, 3, 1], expected, 2)
    assert not has_stalled([4, 2, 0, 3, 1], expected, 3)


@pytest.mark.usefixtures("fast")
def test_patience_ends_a_search_and_a_larger_one_goes_on(
    state: Path, context: TrainingContext
) -> None:
    asked = []

    def by_number(_store: TrackingStore, study: str) -> Mapping[int, float]:
        asked.append(study)
        return {0: 0.2, 1: 0.3, 3: 0.4, 4: 0.4, 6: 0.4, 7: 0.4, 9: 0.4}

    settings = replace(MANY, patience=2)
    worker = open_worker(state, context, settings, by_number)
    assert work(worker) == 6, "the best is the fourth"
    assert len(asked) <= 4, "the model is asked once for each trial that ends"
    assert worker.ended_by() == Limit.PATIENCE
    assert worker.missing() == 0
    assert state_of(worker) == "complete"
    assert work(open_worker(state, context, settings, by_number)) == 0
    assert work(open_worker(state, context, replace(MANY, patience=4), by_number)) == 2


@pytest.mark.usefixtures("fast")
def test_patience_goes_by_what_trials_are_ranked_by(state: Path, context: TrainingContext) -> None:
    worker = open_worker(state, context, replace(MANY, patience=3), expectations)
    count = work(worker)
    rows = [row for row in ranked(worker._store, "s") if row.state == "complete"]
    expected = expectations(worker._store, "s")
    assert expected[int(rows[0].trial)] == max(expected.values())
    assert set(expected) == {int(row.trial) for row in rows}
    assert worker.ended_by() == Limit.PATIENCE
    assert has_stalled(range(count), expected, 3)


@pytest.mark.usefixtures("fast")
def test_a_budget_is_of_the_steps_of_ended_trials(state: Path, context: TrainingContext) -> None:
    """Two of three trials take 4 steps, the third 2: 4, 8, 10, 14, 18."""
    settings = replace(MANY, budget=15)
    worker = open_worker(state, context, settings)
    assert worker.missing() == 4, "were none stopped early"
    assert work(worker) == 5
    assert worker.steps() == 18
    assert worker.ended_by() == Limit.BUDGET
    assert state_of(worker) == "complete"
    again = open_worker(state, context, settings)
    assert (again.missing(), work(again)) == (0, 0)
    assert work(open_worker(state, context, replace(MANY, budget=19))) == 1


@pytest.mark.usefixtures("fast")
def test_a_trial_left_open_is_finished_beyond_the_budget(
    state: Path, context: TrainingContext
) -> None:
    settings = replace(MANY, budget=4)
    worker = open_worker(state, context, settings)
    for trial in worker.trials():
        run_trial(worker.shared, trial, tqdm(disable=True))
        break
    left = worker.study.ask()
    again = open_worker(state, context, settings)
    assert again.missing() == 1
    assert work(again) == 1
    assert again.study.trials[left.number].state.is_finished()
    assert len(again.study.trials) == 2


def test_a_collapsed_trial_has_spent_what_it_trained(
    state: Path, context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It diverges at its first step, before it reports anything."""

    def diverge(config: TrialConfig, *rest: object) -> TrialResult:
        hopeless = config.replace(lr=1e30, warmup_steps=0, d_model=16, nhead=2, num_layers=1)
        return train(hopeless, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tracked_training, "train", diverge)
    worker = open_worker(state, context, replace(MANY, budget=5))
    assert work(worker) == 5
    assert {trial.state for trial in worker.study.trials} == {TrialState.PRUNED}
    assert worker.steps() == 5


@pytest.mark.usefixtures("fast")
def test_a_timeout_is_an_end_as_asked(state: Path, context: TrainingContext) -> None:
    worker = open_worker(state, context, replace(MANY, timeout=1e-9))
    assert work(worker) == 0
    assert worker.ended_by() == Limit.TIMEOUT
    assert state_of(worker) == "complete"
    assert worker.missing() == 20


@pytest.mark.usefixtures("fast")
def test_a_crash_is_no_end_as_asked(state: Path, context: TrainingContext) -> None:
    worker = open_worker(state, context, replace(MANY, budget=400))
    with pytest.raises(ZeroDivisionError), worker.closing():
        raise ZeroDivisionError
    assert state_of(worker) == "interrupted"


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (Limit.TRIALS, "Ended by --trials after 7 of 20 trials; a larger --trials goes on."),
        (Limit.TIMEOUT, "Ended by --timeout after 7 of 20 trials; the same command goes on."),
        (Limit.PATIENCE, "Ended by --patience after 7 of 20 trials; a larger --patience goes on."),
        (Limit.BUDGET, "Ended by --budget after 7 of 20 trials; a larger --budget goes on."),
    ],
)  # fmt: skip
def test_the_end_is_a_line_that_says_how_to_go_on(limit: Limit, said: str) -> None:
    assert describe_end(MANY, limit, 7) == said


def test_points_that_are_all_trained_are_not_asked_for_more() -> None:
    preset = replace(PLAN, preset="homework on 2 seeds")
    assert describe_end(preset, Limit.TRIALS, 4) == "All points are trained: 4 of 4 trials."


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_real_search_ends_by_patience_and_then_by_its_budget(home: Path, jobs: int) -> None:
    words = ("search.py", "--data", "corpus", "--steps", 5, "--trials", 40, "--jobs", jobs)
    done = run_warm(home, *words, "--patience", 1)
    assert done.returncode == 0, done.stderr
    said = re.search(r"^Ended by --patience after (\d+) of 40 trials; ", done.stdout, re.M)
    assert said, done.stdout
    again = run_warm(home, *words, "--patience", 1)
    assert (again.returncode, again.stderr) == (0, "")
    assert said[0] in again.stdout
    spent = run_warm(home, *words, "--budget", 5 * int(said[1]) + 1)
    assert spent.returncode == 0, spent.stderr
    ended = re.search(r"^Ended by --budget after (\d+) of 40 trials", spent.stdout, re.M)
    assert ended, spent.stdout
    assert int(ended[1]) > int(said[1])
    study = optuna.load_study(
        study_name="homework-corpus", storage=f"sqlite:///{home}/mlruns/optuna.db"
    )
    assert len(study.trials) == int(ended[1])
    assert all(trial.state.is_finished() for trial in study.trials)


def test_what_is_asked_for_is_said_with_what_ends_it_before() -> None:
    asked = replace(MANY, timeout=90.5, patience=10, budget=15_000_000)
    assert describe_task(asked, "cpu") == (
        "Study s: 20 trials of 4 steps on cpu, 80 steps in all. It ends before that after 90.5 "
        "seconds or 15,000,000 steps or 10 trials without a better answer."
    )
    assert describe_task(PLAN, "cpu") == "Study s: 4 trials of 4 steps on cpu, 16 steps in all."


def test_the_points_that_come_first_are_those_not_trained_yet(
    state: Path, context: TrainingContext
) -> None:
    worker = open_worker(state, context, MANY)
    both = [(each.d_model, each.num_layers) for each in first_points(worker).values()]
    assert both == [(80, 1), (512, 6)]
    worker.study.tell(worker.study.ask(), 0.5)
    (left,) = first_points(worker).values()
    assert (left.d_model, left.steps) == (512, 4)
