import multiprocessing
import random
import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState, create_trial
from tqdm import tqdm

from experiments import tracked_training
from experiments.context import TrainingContext
from experiments.proposals.attributes import PRESET, REPLICATE, RUN_ID
from experiments.proposals.presets import homework_points
from experiments.proposals.pruners import PRUNERS
from experiments.proposals.samplers import DistinctSampler
from experiments.proposals.space import HOMEWORK, WIDE
from experiments.study import trial as trial_module
from experiments.study.locks import ALIVE, open_locks
from experiments.study.search import StudyWorker, WorkerSpec
from experiments.study.settings import SearchSettings
from experiments.study.storage import open_storage
from experiments.study.trial import listen, run_trial
from experiments.tracking.names import BEST_WHOLE
from experiments.tracking.run import TrackedRun
from experiments.tracking.store import TrackingStore
from speaker.common.cuda import noticing_loss
from speaker.common.errors import DeviceLostError, UserError
from speaker.common.signals import Interrupted
from speaker.config import TrialConfig
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.training import checkpoint
from speaker.training.metrics import OBJECTIVE, Metrics
from speaker.training.outcome import Outcome
from speaker.training.train import Report, TrialResult, train
from tests.helpers import PLAN, TINY, cut_locks


@pytest.fixture
def open_search(state: Path, context: TrainingContext) -> Callable[[SearchSettings], StudyWorker]:
    urls = f"sqlite:///{state}/optuna.db", f"sqlite:///{state}/mlflow.db"
    return lambda settings: WorkerSpec(settings, context, *urls).open()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a narrow model whatever was sampled, so that a study takes seconds;
    all else stays real.
    """

    def train_narrow(config: TrialConfig, *rest: object) -> TrialResult:
        return train(config.replace(d_model=16, nhead=2, num_layers=1), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tracked_training, "train", train_narrow)


def work(worker: StudyWorker, most: int = 99) -> list[int]:
    """Run trials as a search does, `most` at the most; return their numbers."""
    numbers = []
    for trial in worker.trials():
        run_trial(worker.shared, trial, tqdm(disable=True))
        numbers.append(trial.number)
        if len(numbers) == most:
            break
    return numbers


def assert_books_agree(worker: StudyWorker, count: int) -> None:
    """Both stores hold `count` finished trials, one run each, linked both ways."""
    trials = worker.study.get_trials()
    assert [trial.number for trial in trials] == list(range(count))
    assert all(trial.state.is_finished() for trial in trials)
    runs = worker._store.runs("tags.study = 's' and tags.kind = 'trial'")
    assert {run.info.run_id: int(run.data.tags["trial"]) for run in runs} == {
        trial.user_attrs[RUN_ID]: trial.number for trial in trials
    }
    assert len(runs) == count
    names = {
        "FINISHED": TrialState.COMPLETE,
        "KILLED": TrialState.PRUNED,
        "FAILED": TrialState.FAIL,
    }
    for run in runs:
        trial = trials[int(run.data.tags["trial"])]
        assert names[run.info.status] == trial.state
        assert run.data.tags["mlflow.parentRunId"] == worker.shared.parent
        rows = worker._store.client.get_metric_history(run.info.run_id, OBJECTIVE)
        assert {row.step: row.value for row in rows} == trial.intermediate_values
        assert len(rows) == len(trial.intermediate_values), "a row stands twice"
    assert_best_so_far(worker)


def assert_best_so_far(worker: StudyWorker) -> None:
    """The study's run has the best after so many ended trials, each once."""
    rows = worker._store.client.get_metric_history(worker.shared.parent, BEST_WHOLE)
    scores = [
        trial.value or 0.0 if trial.state == TrialState.COMPLETE else -1.0
        for trial in sorted(worker.finished(), key=lambda trial: str(trial.datetime_complete))
    ]
    expected = [(count, max(scores[:count])) for count in range(1, len(scores) + 1)]
    written = [(row.step, row.value) for row in rows]
    assert written == [row for row in expected if row[1] >= 0][: len(written)]
    assert rows or max(scores) < 0


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_trials_means_that_many_finished_trials(
    open_search: Callable[[SearchSettings], StudyWorker],
) -> None:
    assert work(open_search(replace(PLAN, trials=3))) == [0, 1, 2]
    assert work(open_search(replace(PLAN, trials=3))) == []
    worker = open_search(PLAN)
    assert work(worker) == [3]
    worker.close()
    assert_books_agree(worker, 4)
    presets = [trial.user_attrs.get(PRESET) for trial in worker.study.trials]
    assert presets == ["homework-baseline", "homework-edited", None, None]
    assert worker.study.trials[1].params == {
        "d_model": 512,
        "nhead": 16,
        "num_layers": 6,
        "activation": "relu",
    }
    assert worker._store.client.get_run(worker.shared.parent).info.status == "FINISHED"
    assert worker.study.metric_names == [OBJECTIVE], "what Optuna's dashboard calls it"


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_study_draws_the_same_however_often_it_is_interrupted(
    open_search: Callable[[SearchSettings], StudyWorker], sampler: str
) -> None:
    settings = replace(PLAN, sampler=sampler, trials=14)
    whole = open_search(settings)
    work(whole)
    broken_plan = replace(settings, name="broken")
    for count in (2, 5, 1, 99):
        work(open_search(broken_plan), count)
    broken = open_search(broken_plan)
    for one, other in zip(whole.study.trials, broken.study.trials, strict=True):
        assert one.params == other.params
        assert one.intermediate_values == other.intermediate_values


@pytest.mark.usefixtures("fast")
def test_an_interrupted_trial_is_resumed_under_its_number_and_run(
    open_search: Callable[[SearchSettings], StudyWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = open_search(PLAN)
    original = vars(tracked_training)["train"]

    def interrupt(*arguments: object) -> TrialResult:
        original(*arguments)
        raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(tracked_training, "train", interrupt)
        with pytest.raises(Interrupted):
            work(worker)
    worker.close()
    (trial,) = worker.study.get_trials()
    assert trial.state == TrialState.RUNNING
    run = worker._store.client.get_run(trial.user_attrs[RUN_ID])
    assert (run.info.status, run.data.tags["state"]) == ("KILLED", "interrupted")

    again = open_search(PLAN)
    assert work(again) == [0, 1, 2, 3]
    again.close()
    assert again.study.trials[0].user_attrs[RUN_ID] == trial.user_attrs[RUN_ID]
    assert_books_agree(again, 4)


def test_a_worker_that_was_cut_off_is_seen_at_work_again(
    state: Path, context: TrainingContext, postgres: str
) -> None:
    """While it is not, a doctor elsewhere may mend the study."""
    settings = replace(PLAN, name="cut-off")
    worker = WorkerSpec(settings, context, postgres, f"sqlite:///{state}/mlflow.db").open()
    trials = worker.trials()
    next(trials)
    cut_locks(postgres)
    assert worker._locks.held([ALIVE]) == set()
    worker.shared.prove()
    assert worker._locks.held([ALIVE]) == {ALIVE}
    with worker._locks.sharing(ALIVE):
        trials.close()  # type: ignore[attr-defined]
    assert worker._locks.held([ALIVE]) == set()
    getattr(worker.study._storage, "_backend").engine.dispose()  # noqa: B009


@pytest.mark.usefixtures("fast")
def test_a_worker_that_lost_its_lock_writes_nothing_more(
    state: Path,
    context: TrainingContext,
    postgres: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Cut the lock's connection in mid-trial, and let another worker take the trial over."""

    spec = WorkerSpec(PLAN, context, postgres, f"sqlite:///{state}/mlflow.db")
    first, second = spec.open(), spec.open()
    others: list[list[int]] = []

    def listen_and_lose(trial: optuna.trial.Trial, prune_presets: bool) -> Report:
        report = listen(trial, prune_presets)

        def reported(step: int, metrics: Metrics) -> bool:
            answer = report(step, metrics)
            if trial.number == 1 and not others:
                cut_locks(postgres)
                others.append([])
                others[0] += work(second)
            return answer

        return reported

    monkeypatch.setattr(trial_module, "listen", listen_and_lose)
    assert work(first) == [0, 1]
    assert others == [[1, 2, 3]]
    assert "#1: this worker's lock on it was lost" in capsys.readouterr().out
    first.close()
    assert_books_agree(first, 4)
    for worker in (first, second):
        getattr(worker.study._storage, "_backend").engine.dispose()  # noqa: B009


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("write", ["report", "tell"])
def test_a_trial_that_another_ends_just_before_a_write_is_left_to_it(
    open_search: Callable[[SearchSettings], StudyWorker],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write: str,
) -> None:
    """The other one strikes between the proof of the lock and the write itself."""
    worker, other = open_search(PLAN), open_search(PLAN)
    owner = optuna.trial.Trial if write == "report" else optuna.Study
    original, struck = getattr(owner, write), list[str]()

    def strike_first(*arguments: Any, **more: Any) -> Any:
        trial = arguments[0 if write == "report" else 1]
        if not struck and trial.number == 1:
            struck.append(write)
            other.study.tell(1, state=TrialState.FAIL)
        return original(*arguments, **more)

    monkeypatch.setattr(owner, write, strike_first)
    assert work(worker) == [0, 1, 2, 3]
    assert struck == [write]
    assert "lock on it was lost (another worker has ended it)" in capsys.readouterr().out
    worker.close()
    states = [trial.state.name for trial in worker.study.get_trials()]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    runs = worker.shared.store.runs("tags.kind = 'trial'")
    statuses = {run.data.tags["trial"]: run.info.status for run in runs}
    assert statuses == {"0": "FINISHED", "1": "FAILED", "2": "FINISHED", "3": "FINISHED"}


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("step", ["ask", "open_run", "log_result", "tell", "close"])
def test_a_worker_may_die_after_any_write(
    open_search: Callable[[SearchSettings], StudyWorker],
    context: TrainingContext,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Die, in the second trial, right after each of the writes that make up a trial."""
    monkeypatch.setattr(checkpoint, "MIN_INTERVAL_S", 0.0)

    class Death(BaseException):
        pass

    owner, name = {
        "ask": (optuna.Study, "ask"),
        "open_run": (TrackingStore, "_create_run"),
        "log_result": (TrackedRun, "log_result"),
        "tell": (optuna.Study, "tell"),
        "close": (TrackedRun, "close"),
    }[step]
    original = getattr(owner, name)
    calls = []

    def die_after(*arguments: object, **more: object) -> object:
        result = original(*arguments, **more)
        calls.append(name)
        if len(calls) == 2:
            raise Death
        return result

    worker = open_search(PLAN)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die_after)
        with pytest.raises(Death):
            work(worker)
    del worker
    left = context.checkpoints.glob("*.checkpoint")
    assert len(list(left)) == (step not in ("ask", "open_run", "close"))
    again = open_search(PLAN)
    work(again)
    again.close()
    assert_books_agree(again, 4)
    assert not list(context.checkpoints.glob("*.checkpoint"))


@pytest.mark.usefixtures("fast")
def test_a_bug_closes_the_run_as_failed_and_stops_the_search(
    open_search: Callable[[SearchSettings], StudyWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_arguments: object) -> TrialResult:
        raise ZeroDivisionError("a bug")

    worker = open_search(PLAN)
    with monkeypatch.context() as patch:
        patch.setattr(tracked_training, "train", crash)
        with pytest.raises(ZeroDivisionError):
            work(worker)
    (run,) = worker._store.runs("tags.kind = 'trial'")
    assert run.info.status == "FAILED"
    assert run.data.tags["state.reason"] == "ZeroDivisionError: a bug"
    again = open_search(PLAN)
    work(again)
    assert_books_agree(again, 4)


@pytest.mark.usefixtures("fast")
def test_a_lost_device_costs_a_trial_only_the_second_time(
    open_search: Callable[[SearchSettings], StudyWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a card does it: an error in the third evaluation's step,
    whatever is computed afterwards in this process.
    """
    original = vars(tracked_training)["train"]

    def lose(
        config: TrialConfig, pack: Pack, protocol: Protocol, report: Report, *rest: object
    ) -> TrialResult:
        def heard(step: int, metrics: Metrics) -> bool:
            with noticing_loss(torch.device("cuda", 0)):
                if step == 4:
                    raise torch.AcceleratorError(
                        "CUDA error: device-side assert triggered\nCompile with ..."
                    )
            return report(step, metrics)

        return original(config, pack, protocol, heard, *rest)

    reason = "cuda:0 was lost (CUDA error: device-side assert triggered)"
    with monkeypatch.context() as patch:
        patch.setattr(tracked_training, "train", lose)
        for state in ("interrupted", "failed"):
            worker = open_search(PLAN)
            with pytest.raises(DeviceLostError, match=rf"^{re.escape(reason)} in trial #0$"):
                work(worker)
            worker.close()
            (run,) = worker._store.runs("tags.kind = 'trial'")
            assert run.data.tags["state"] == state
            assert run.data.tags["state.reason"].startswith(reason)
    again = open_search(PLAN)
    assert work(again) == [1, 2, 3]
    assert_books_agree(again, 4)
    states = [trial.state for trial in again.study.trials]
    assert states == [TrialState.FAIL, *[TrialState.COMPLETE] * 3]
    assert again.study.trials[0].user_attrs["reason"] == f"{reason}, for the second time"


@pytest.mark.usefixtures("fast")
def test_points_that_fail_or_are_pruned_end_as_such_and_the_search_goes_on(
    open_search: Callable[[SearchSettings], StudyWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = vars(tracked_training)["train"]
    calls = []

    def train_some(config: TrialConfig, *rest: object) -> TrialResult:
        calls.append(config)
        if len(calls) == 1:
            return original(config.replace(lr=1e30, warmup_steps=0), *rest)
        result = original(config, *rest)
        return (
            replace(result, outcome=Outcome.PRUNED, reason="too slow")
            if len(calls) == 3
            else result
        )

    monkeypatch.setattr(tracked_training, "train", train_some)
    worker = open_search(PLAN)
    work(worker)
    worker.close()
    states = [trial.state for trial in worker.study.trials]
    assert states == [
        TrialState.PRUNED,
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.COMPLETE,
    ]
    assert [trial.constraints for trial in worker.study.trials] == [{"collapsed": 1.0}, {}, {}, {}]
    assert worker.study.trials[0].value is None, "no accuracy is made up"
    assert_books_agree(worker, 4)
    runs = worker._store.runs("tags.kind = 'trial'")
    assert [run.data.tags["state"] for run in runs] == [
        "collapsed",
        "complete",
        "pruned",
        "complete",
    ]
    assert "diverged" in runs[0].data.tags["state.reason"]
    assert runs[2].data.tags["state.reason"] == "too slow"


def test_a_study_of_another_kind_is_refused_by_name(
    open_search: Callable[[SearchSettings], StudyWorker],
) -> None:
    open_search(PLAN)
    with pytest.raises(
        UserError, match="seed is 0 there and 1 here; choose another --study, such as s-2"
    ):
        open_search(replace(PLAN, seed=1))
    with pytest.raises(UserError, match="space is homework there and wide here"):
        open_search(replace(PLAN, space=WIDE))
    with pytest.raises(UserError, match="steps is 4 there and 8 here"):
        open_search(replace(PLAN, base=PLAN.base.replace(steps=8)))


def test_a_study_of_another_corpus_or_objective_is_refused(
    open_search: Callable[[SearchSettings], StudyWorker],
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    context: TrainingContext,
) -> None:
    open_search(PLAN)
    monkeypatch.setattr("experiments.study.contract.OBJECTIVE", "accuracy/crops")
    with pytest.raises(
        UserError, match="objective is accuracy/whole there and accuracy/crops here"
    ):
        open_search(PLAN)
    monkeypatch.undo()
    other = replace(context, pack=replace(context.pack, digest="other"))
    url = f"sqlite:///{state}/optuna.db"
    with pytest.raises(UserError, match="corpus is .* there and other here"):
        WorkerSpec(PLAN, other, url, f"sqlite:///{state}/mlflow.db").open()


def test_a_study_that_is_not_ours_is_refused(
    open_search: Callable[[SearchSettings], StudyWorker], state: Path
) -> None:
    storage = open_storage(f"sqlite:///{state}/optuna.db")
    optuna.create_study(storage=storage, study_name="s", direction="maximize").add_trial(
        optuna.trial.create_trial(value=1.0)
    )
    with pytest.raises(UserError, match="another program"):
        open_search(PLAN)


@pytest.mark.usefixtures("fast")
def test_a_disk_that_is_full_costs_no_trial(
    open_search: Callable[[SearchSettings], StudyWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_arguments: object) -> TrialResult:
        raise OSError(28, "No space left on device")

    worker = open_search(PLAN)
    with monkeypatch.context() as patch:
        patch.setattr(tracked_training, "train", fill)
        with pytest.raises(OSError, match="No space"):
            work(worker)
    worker.close()
    assert [trial.state for trial in worker.study.get_trials()] == [TrialState.RUNNING]
    assert worker._store.client.get_run(worker.shared.parent).data.tags["state"] == "interrupted"
    again = open_search(PLAN)
    work(again)
    assert_books_agree(again, 4)


def test_a_new_storage_does_not_take_over_the_runs_of_another(
    open_search: Callable[[SearchSettings], StudyWorker], state: Path, context: TrainingContext
) -> None:
    open_search(PLAN)
    url = f"sqlite:///{state}/second.db"
    with pytest.raises(
        UserError, match="holds another study 's', of another --storage; choose another --study"
    ):
        WorkerSpec(PLAN, context, url, f"sqlite:///{state}/mlflow.db").open()


def test_lost_runs_are_noticed(
    open_search: Callable[[SearchSettings], StudyWorker], state: Path, context: TrainingContext
) -> None:
    open_search(PLAN)
    url = f"sqlite:///{state}/optuna.db"
    with pytest.raises(UserError, match="must be in the tracking store"):
        WorkerSpec(PLAN, context, url, f"sqlite:///{state}/other.db").open()


@pytest.mark.usefixtures("fast")
def test_no_trial_starts_after_the_timeout(
    open_search: Callable[[SearchSettings], StudyWorker],
) -> None:
    assert work(open_search(replace(PLAN, timeout=1e-9))) == []


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("pruner", ["median", "hyperband", "halving"])
def test_pruners_end_trials_within_the_rules(
    open_search: Callable[[SearchSettings], StudyWorker], pruner: str
) -> None:
    settings = replace(
        PLAN, pruner=pruner, trials=16, base=TINY.replace(steps=6, warmup_steps=1, valid_every=1)
    )
    worker = open_search(settings)
    work(worker)
    assert_books_agree(worker, 16)
    for trial in worker.study.trials:
        earliest = 1 if pruner == "halving" else 2
        assert trial.state == TrialState.COMPLETE or max(trial.intermediate_values) >= earliest
    assert TrialState.PRUNED in {trial.state for trial in worker.study.trials}


def test_halving_stops_the_worse_two_thirds_at_each_rung() -> None:
    study = optuna.create_study(direction="maximize", pruner=PRUNERS["halving"](100))
    stopped = {}
    for number, last in enumerate([0.5, 0.4, 0.6, 0.1, 0.7, 0.65, 0.9, 0.8, 0.2]):
        trial = study.ask()
        report = listen(trial)
        steps = [20, 40, 60, 80, 100]
        stops = [step for step in steps if report(step, {OBJECTIVE: last})]
        stopped[number] = stops[0] if stops else None
        study.tell(trial, last)
    assert stopped[1] == stopped[3] == stopped[8] == 20
    assert stopped[0] is None, "the first of all has nothing to be measured by"
    assert stopped[6] is None
    assert set(stopped.values()) <= {None, 20, 60}


@pytest.mark.parametrize("pruner", ["halving", "hyperband", "median"])
def test_a_trial_that_is_asked_about_again_after_a_kill_gets_the_same_answer(pruner: str) -> None:
    """Optuna's halving answers once: a trial that was killed before its end went on."""
    draw = random.Random(0)  # noqa: S311  # no secret
    accuracies = [[draw.random() for _ in range(5)] for _ in range(40)]

    def stops(is_killed: bool) -> list[int | None]:
        study = optuna.create_study(
            study_name="s", direction="maximize", pruner=PRUNERS[pruner](100)
        )
        found: list[int | None] = []
        for values in accuracies:
            trial, stopped = study.ask(), None
            report = listen(trial)
            for step, value in zip((20, 40, 60, 80, 100), values, strict=True):
                answer = report(step, {OBJECTIVE: value})
                if is_killed:
                    again = listen(optuna.trial.Trial(study, trial._trial_id))
                    assert again(step, {OBJECTIVE: value}) == answer, (trial.number, step)
                if answer:
                    stopped = step
                    break
            found.append(stopped)
            study.tell(trial, None if stopped else value, TrialState.PRUNED if stopped else None)
        return found

    assert stops(is_killed=True) == stops(is_killed=False)
    assert {20, 60} <= set(stops(is_killed=True)) or pruner != "halving"


@pytest.mark.parametrize("prune_presets", [False, True])
def test_presets_are_trained_to_their_end_and_others_measured_by_them(prune_presets: bool) -> None:
    study = optuna.create_study(direction="maximize", pruner=PRUNERS["halving"](100))
    for values in (0.9, 0.8):
        trial = study.ask()
        listen(trial)(20, {OBJECTIVE: values})
        study.tell(trial, values)
    study.enqueue_trial({}, user_attrs={PRESET: "p"})
    assert listen(study.ask(), prune_presets)(20, {OBJECTIVE: 0.1}) == prune_presets
    assert listen(study.ask())(20, {OBJECTIVE: 0.05})


@pytest.mark.usefixtures("fast")
def test_replicates_of_presets_share_their_seeds(
    open_search: Callable[[SearchSettings], StudyWorker],
) -> None:
    presets = homework_points(HOMEWORK, seeds=2)
    settings = replace(PLAN, trials=4, presets=presets, preset="homework on 2 seeds")
    worker = open_search(settings)
    work(worker)
    seeds = [
        worker.shared.config(optuna.trial.Trial(worker.study, trial._trial_id)).seed
        for trial in worker.study.trials
    ]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert [trial.user_attrs[REPLICATE] for trial in worker.study.trials] == [0, 0, 1, 1]
    runs = worker._store.trial_runs("s")
    assert [run.data.tags["replicate"] for run in runs] == ["0", "0", "1", "1"]
    assert all(run.data.tags["valid.hits"] for run in runs)
    assert worker.steps() == 16
    with pytest.raises(UserError, match="preset is homework on 2 seeds there and none here"):
        open_search(PLAN)


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_no_two_trials_of_a_study_have_one_point(
    open_search: Callable[[SearchSettings], StudyWorker],
) -> None:
    worker = open_search(replace(PLAN, sampler="tpe", trials=16, base=TINY.replace(
        steps=2, warmup_steps=1, valid_every=2)))  # fmt: skip
    work(worker)
    points = {tuple(sorted(trial.params.items())) for trial in worker.study.trials}
    assert len(points) == 16


@pytest.mark.slow
def test_a_point_that_is_taken_while_it_is_proposed_is_proposed_anew(
    open_search: Callable[[SearchSettings], StudyWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others claim theirs meanwhile: the study's lock is free."""
    worker = open_search(replace(PLAN, presets=()))
    proposed: list[dict[str, Any]] = []
    propose = DistinctSampler.sample_relative

    def propose_what_another_takes(*arguments: Any) -> dict[str, Any]:
        point = propose(*arguments)
        if not proposed:
            assert not worker._locks.held(["study"])
            worker.study.add_trial(
                create_trial(value=0.0, params=point, distributions=PLAN.space.distributions())
            )
        proposed.append(point)
        return point

    monkeypatch.setattr(DistinctSampler, "sample_relative", propose_what_another_takes)
    trial = next(worker.trials())
    assert len(proposed) == 2
    assert trial.params == proposed[1] != proposed[0]


def test_eight_processes_open_a_new_storage_at_once(state: Path) -> None:
    url = f"sqlite:///{state}/optuna.db"
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        pool.map(open_and_write, [url] * 8)
    study = optuna.load_study(study_name="many", storage=open_storage(url))
    assert Counter(trial.state for trial in study.trials) == {TrialState.COMPLETE: 40}
    with sqlite3.connect(state / "optuna.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def open_and_write(url: str) -> None:
    torch.set_num_threads(1)
    study = optuna.create_study(storage=open_storage(url), study_name="many", load_if_exists=True)
    for _ in range(5):
        study.tell(study.ask(), 1.0)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+none://u@h/d",
        "postgresql://u@h:port/d",
        "sqlite:////proc/none/x.db",
        "sqlite:///x.db?timeout=a",
    ],
)
def test_a_storage_that_cannot_be_used_is_one_clear_line(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        open_both(url)
    assert "\n" not in str(caught.value)


def open_both(url: str) -> None:
    open_locks(url, "s")
    open_storage(url)


@pytest.mark.parametrize("content", [b"no database", b""])
def test_a_file_that_is_no_storage(state: Path, content: bytes) -> None:
    path = state / "optuna.db"
    path.write_bytes(content)
    if content:
        with pytest.raises(UserError, match="cannot be opened .*check --storage"):
            open_storage(f"sqlite:///{path}")
    else:
        open_storage(f"sqlite:///{path}")  # SQLite takes an empty file for a new database
