"""Trials that end without a fair score: what the study hears of them, and how they are tried again."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from experiments.analysis.leaderboard import describe_unfair, ranked
from experiments.analysis.table import table
from experiments.proposals.attributes import OVERRIDES, RESCUE_OF
from experiments.proposals.rescue import split_changes
from experiments.proposals.samplers import make_sampler
from experiments.proposals.space import HOMEWORK, WIDE, Space
from experiments.study.search import StudyWorker
from experiments.study.settings import SearchSettings
from experiments.study.storage import open_storage
from experiments.tracking.run import TrackedRun
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.config import HOMEWORK_BASELINE
from tests.helpers import PLAN, ROOT, TINY, run
from tests.study.test_search import fast, open_search, work

__all__ = ["fast", "open_search"]  # fixtures

# Whatever is trained collapses.
HOT = replace(
    PLAN,
    trials=7,
    rescue=True,
    base=TINY.replace(steps=20, warmup_steps=0, valid_every=10, lr=30.0),
)
HUGE = 2**40  # more than any machine's memory, as a width


@pytest.mark.usefixtures("fast")
def test_what_collapsed_is_tried_once_more_after_the_presets(
    open_search: Callable[[SearchSettings], StudyWorker],
) -> None:
    worker = open_search(HOT)
    work(worker)
    worker.close()
    trials = worker.study.get_trials()
    assert [trial.user_attrs.get(RESCUE_OF) for trial in trials] == [
        None,
        None,
        0,
        1,
        None,
        4,
        None,
    ]
    assert all(trial.user_attrs["outcome"] == "collapsed" for trial in trials)
    for trial in trials[2], trials[3], trials[5]:
        parent = trials[trial.user_attrs[RESCUE_OF]]
        assert trial.params == parent.params
        one, other = worker.shared.config(trial), worker.shared.config(parent)
        assert (one.norm_first, other.norm_first) == (True, False)
        assert one.replace(norm_first=False, seed=other.seed) == other
    rows = ranked(worker._store, "s")
    assert {row.trial: row.rescue_of for row in rows if row.rescue_of} == {
        "2": "0", "3": "1", "5": "4",
    }  # fmt: skip
    assert re.search(r"collapsed .*\n +rescue of #0$", table(rows, best=7), re.MULTILINE)
    told = describe_unfair(rows).splitlines()
    assert len(told) == 7
    assert told[0].startswith("#0 d80 h2 L1 sigmoid lr 30 collapsed: ")
    assert told[0].endswith("; tried again as #2")
    assert "at step 1" in told[0] or "at step 2" in told[0]
    with pytest.raises(UserError, match="rescue is on there and none here"):
        open_search(replace(HOT, rescue=False))


@pytest.mark.usefixtures("fast")
def test_rescues_are_the_same_however_often_a_study_is_interrupted(
    open_search: Callable[[SearchSettings], StudyWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between it dies right after it has queued a rescue, and right after it has told an end."""

    class Death(BaseException):
        pass

    whole = open_search(HOT)
    work(whole)
    plan = replace(HOT, name="broken")
    work(open_search(plan), 2)
    for owner, name in ((optuna.Study, "enqueue_trial"), (TrackedRun, "close")):
        original = getattr(owner, name)

        def die(*arguments: object, original: object = original, **more: object) -> None:
            original(*arguments, **more)  # type: ignore[operator]
            raise Death

        worker = open_search(plan)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, die)
            with pytest.raises(Death):
                work(worker)
    for count in (1, 99):
        work(open_search(plan), count)
    broken = open_search(plan)
    assert len(broken.study.trials) == len(whole.study.trials)
    for one, other in zip(whole.study.trials, broken.study.trials, strict=True):
        assert one.params == other.params
        assert one.user_attrs.get(RESCUE_OF) == other.user_attrs.get(RESCUE_OF)
        assert whole.shared.config(one) == broken.shared.config(other)


@pytest.mark.usefixtures("fast")
def test_a_pre_norm_point_is_tried_again_at_a_third_of_its_rate(
    open_search: Callable[[SearchSettings], StudyWorker],
) -> None:
    settings = replace(HOT, base=HOT.base.replace(norm_first=True), trials=3)
    worker = open_search(settings)
    work(worker)
    assert worker.study.trials[2].user_attrs[OVERRIDES] == {"lr": 10.0}
    assert worker.shared.config(worker.study.trials[2]).lr == 10.0


def test_what_the_space_varies_becomes_a_parameter_and_what_it_does_not_an_override() -> None:
    assert split_changes(WIDE, {"norm_first": True}) == ({"norm_first": True}, {})
    assert split_changes(HOMEWORK, {"norm_first": True}) == ({}, {"norm_first": True})
    assert split_changes(WIDE, {"lr": 1e-3}) == ({"lr": 1e-3}, {})
    assert split_changes(WIDE, {"lr": 5e-5}) == ({}, {"lr": 5e-5})


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_point_that_does_not_fit_is_infeasible_and_the_search_goes_on(
    open_search: Callable[[SearchSettings], StudyWorker], sampler: str
) -> None:
    space = Space("odd", choices={"dim_feedforward": (32, HUGE), "nhead": (1, 2, 4, 8)})
    worker = open_search(replace(PLAN, space=space, presets=(), sampler=sampler, trials=8))
    work(worker)
    worker.close()
    huge = [trial.params["dim_feedforward"] == HUGE for trial in worker.study.trials]
    assert 0 < sum(huge) < 8
    for trial, is_huge in zip(worker.study.trials, huge, strict=True):
        assert trial.state == (TrialState.PRUNED if is_huge else TrialState.COMPLETE)
        assert trial.constraints == ({"infeasible": 1.0} if is_huge else {})
        assert is_huge == (trial.value is None)
    runs = worker._store.trial_runs("s")
    assert [run.data.tags["state"] == "infeasible" for run in runs] == huge
    assert all("out of memory" in run.data.tags["state.reason"] for run, it in zip(runs, huge, strict=True) if it)  # fmt: skip


def propose(state: TrialState) -> int:
    """Return how many of 30 points TPE proposes among those that cannot be trained, if they are told
    with this state.
    """
    study = optuna.create_study(direction="maximize")
    for number in range(40):
        study.sampler = make_sampler("tpe", HOMEWORK, number)
        trial = study.ask()
        config = HOMEWORK.sample(trial, HOMEWORK_BASELINE)
        if config.d_model < 512:
            study.tell(trial, config.d_model / 1000)
            continue
        if state == TrialState.PRUNED:
            trial.set_constraint("infeasible", 1.0)
        study.tell(trial, state=state)
    return sum(trial.params["d_model"] == 512 for trial in study.trials[10:])


def test_the_sampler_keeps_away_from_broken_constraints() -> None:
    assert propose(TrialState.PRUNED) < 5 <= propose(TrialState.FAIL)


@pytest.mark.slow
def test_two_workers_try_each_collapsed_point_again_once(home: Path) -> None:
    done = run(
        home, "search.py", "--data", "corpus", "--study", "s", "--trials", 8, "--steps", 10, "--rescue",
        "--fix", "lr=30.0", "--choices", "d_model=80,128", "--choices", "num_layers=1,2", "--jobs", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(
        study_name="s", storage=open_storage(f"sqlite:///{home}/mlruns/optuna.db")
    )
    parents = [
        trial.user_attrs[RESCUE_OF] for trial in study.trials if RESCUE_OF in trial.user_attrs
    ]
    assert len(set(parents)) == len(parents) >= 2  # a hot training need not collapse
    assert done.stdout.count("; tried again as #") == len(parents)
    assert not set(parents) & {
        trial.number for trial in study.trials if RESCUE_OF in trial.user_attrs
    }
    assert len(study.trials) == 8
    runs = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db").trial_runs("s")
    assert sorted(int(run.data.tags["rescue.of"]) for run in runs if "rescue.of" in run.data.tags) == sorted(parents)  # fmt: skip


LIMITED = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import torch
from experiments.context import load_context
from experiments.study.search import WorkerSpec
from experiments.proposals.space import Space
from experiments.study.trial import run_trial
from tests.helpers import PLAN
from tqdm import tqdm

torch.set_num_threads(1)
state = Path("mlruns")
space = Space("odd", choices={"dim_feedforward": (32, 2**23), "nhead": (1, 2, 4, 8)})
settings = replace(PLAN, space=space, presets=(), trials=8, base=PLAN.base)
spec = WorkerSpec(settings, load_context(Path("corpus"), "cpu", "fp32", state),
                  "sqlite:///mlruns/optuna.db", f"sqlite:///{state.resolve()}/mlflow.db")
worker = spec.open()
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 1536 * 2**20,) * 2)
with worker.closing():
    for trial in worker.trials():
        config, result = run_trial(worker.shared, trial, tqdm(disable=True))
        print(config.dim_feedforward, result.outcome, flush=True)
"""


@pytest.mark.slow
def test_memory_that_a_point_lacked_is_there_for_the_next(home: Path) -> None:
    """In a process that may not have more than a gigabyte and a half besides what it has."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        cwd=home,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ends = done.stdout.splitlines()
    assert Counter(ends) == {"32 complete": 4, f"{2**23} infeasible": 4}
    assert ends.index(f"{2**23} infeasible") < 7 - ends[::-1].index("32 complete")
