"""search.py --jobs: several trials at once, in processes that may die like any other."""

import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from experiments import tracked_training
from experiments.context import TrainingContext
from experiments.engines.processes import Processes
from experiments.engines.processes import _work as work
from experiments.engines.progress import Progress
from experiments.proposals.attributes import LOSSES
from experiments.study.search import WorkerSpec
from speaker.common.devices import usable_cores
from speaker.common.errors import DeviceLostError, UserError
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.training.train import TrialResult
from tests.helpers import KILLS, PLAN, assert_whole, run, start

SEARCH = ("search.py", "--data", "corpus", "--steps", "5", "--jobs", "2", "--trials")
ALL_LOSE = 13  # a seed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(usable_cores() < 2, reason="two jobs need two cores"),
]


@pytest.fixture
def spec(state: Path, context: TrainingContext) -> WorkerSpec:
    return WorkerSpec(PLAN, context, f"sqlite:///{state}/optuna.db", f"sqlite:///{state}/mlflow.db")


def workers_of(process: "subprocess.Popen[str]", count: int = 2) -> list[int]:
    """Return the process ids of a search's workers, once it has started so many;
    none when it ends without them.
    """
    deadline = time.monotonic() + 180
    while process.poll() is None:
        assert time.monotonic() < deadline, f"it has no {count} workers"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = [int(child) for child in children if "spawn_main" in read_about(child, "cmdline")]
        if len(found) == count:
            return found
        time.sleep(0.05)
    return []


def read_about(process_id: int | str, name: str) -> str:
    """Return what the kernel says of a process; nothing when it is gone."""
    try:
        return Path(f"/proc/{process_id}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def blocked_signals(process_id: int) -> set[int]:
    """Return the signals that do not reach a process."""
    status = read_about(process_id, "status")
    mask = int(
        next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")), 16
    )
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def is_alive(process_id: int) -> bool:
    """Tell whether a process runs: one that has ended and was not reaped does not."""
    return read_about(process_id, "stat").rpartition(")")[2].split()[:1] not in ([], ["Z"])


def test_two_at_once_finish_the_study_though_one_is_killed(home: Path) -> None:
    process = start(home, *SEARCH, 5)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("#"):
        pass
    os.kill(workers_of(process)[0], signal.SIGKILL)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert re.search(
        r"^worker 1 was killed \(SIGKILL\); another takes its place$", output, re.MULTILINE
    ), output
    assert len(re.findall(r"^ +\d+ +#\d", output, re.MULTILINE)) == 5
    assert_whole(home, 5)


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda signum: signum.name
)
def test_stopped_they_stop_and_go_on(home: Path, signum: signal.Signals) -> None:
    """Ctrl-C goes to the workers, too, as a terminal sends it; it is for their parent alone."""
    wait = random.Random(int(signum))  # noqa: S311  # moments, not secrets
    stops = 0
    for _ in range(KILLS):
        process = start(home, *SEARCH, 6 * KILLS, start_new_session=True)
        workers = workers_of(process)
        assert all(signal.SIGINT in blocked_signals(worker) for worker in workers)
        time.sleep(wait.uniform(0, 6))
        if signum == signal.SIGINT and process.poll() is None:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            break  # it was done before the signal came
        stops += 1
        assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum), errors
        assert "Traceback" not in errors
        deadline = time.monotonic() + 10
        while any(map(is_alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_alive, workers)), "a worker outlived the search"
    assert stops
    done = run(home, *SEARCH, 6 * KILLS)
    assert done.returncode == 0, done.stderr
    assert_whole(home, 6 * KILLS)


def test_when_all_are_killed_it_says_so_and_goes_on_later(home: Path) -> None:
    process = start(home, *SEARCH, 4)
    while workers := workers_of(process):
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "error: one worker must live to the end, but all were killed" in errors
    assert run(home, *SEARCH, 4).returncode == 0
    assert_whole(home, 4)


def test_a_bug_in_a_worker_stops_all_and_shows_where(spec: WorkerSpec) -> None:
    spec = replace(spec, context=replace(spec.context, protocol=Protocol(crop_len=-1)))
    worker = spec.open()
    with pytest.raises(
        RuntimeError, match=r"a worker met a bug:\n(.*\n)+.*experiments/study/trial.py"
    ):
        Processes(2).run(worker, 2, Progress(worker.shared, 4, [], 2))
    states = [trial.state for trial in worker.study.get_trials()]
    assert optuna.trial.TrialState.FAIL in states


def lose_device(packed: bytes, connection: Connection) -> None:
    """Be a worker whose card is lost in its first trial,
    if it is worker 1 or all are to lose theirs.
    """

    def lose(*_arguments: object) -> TrialResult:
        raise DeviceLostError("cuda:0 was lost (CUDA error: unspecified launch failure)")

    spec = pickle.loads(packed)  # noqa: S301  # our own parent's
    if spec.settings.seed == ALL_LOSE or multiprocessing.current_process().name == "worker 1":
        setattr(tracked_training, "train", lose)  # noqa: B010  # another function, mypy says
    work(packed, connection)


def test_a_worker_that_loses_its_device_leaves_its_trial_to_the_others(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.engines.processes._work", lose_device)
    worker = spec.open()
    Processes(2).run(worker, 2, Progress(worker.shared, 4, [], 2))
    trials = worker.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert sum(trial.user_attrs.get(LOSSES, 0) for trial in trials) == 1
    assert re.search(r"^worker 1 ended: cuda:0 was lost \(.*\) in trial #\d; the other 1 go on$",
                     capsys.readouterr().out, re.MULTILINE)  # fmt: skip


def refuse(_pack: Pack) -> tuple[object, ...]:
    raise RuntimeError("CUDA error: operation not supported\nCompile with ...")


def refuse_there(_pack: Pack) -> tuple[object, ...]:
    return refuse, (None,)


@pytest.mark.parametrize("reduce", [refuse, refuse_there], ids=("by the parent", "by a worker"))
def test_a_card_that_cannot_be_shared_is_one_line(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch, reduce: Callable[[Pack], tuple[object, ...]]
) -> None:
    worker = spec.open()
    monkeypatch.setattr(Pack, "__reduce__", reduce)
    with pytest.raises(UserError, match=r"^--jobs must share the GPU's memory, but cannot here \(CUDA error: operation "
                       r"not supported\); use --jobs 1$"):  # fmt: skip
        Processes(2).run(worker, 2, Progress(worker.shared, 4, [], 2))


def test_when_all_lose_their_devices_the_search_ends_in_one_line(
    spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.engines.processes._work", lose_device)
    spec = replace(spec, settings=replace(PLAN, seed=ALL_LOSE))
    worker = spec.open()
    with pytest.raises(DeviceLostError, match=r"cuda:0 was lost \(.*\) in trial #\d$"):
        Processes(2).run(worker, 2, Progress(worker.shared, 4, [], 2))
    assert not any(trial.state == TrialState.COMPLETE for trial in worker.study.get_trials())


def test_what_a_worker_cannot_mend_is_one_line(spec: WorkerSpec) -> None:
    worker = spec.open()
    worker.spec = replace(spec, settings=replace(PLAN, seed=1))
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        Processes(2).run(worker, 2, Progress(worker.shared, 4, [], 2))
    assert worker.study.get_trials() == []


def test_more_jobs_than_cores_are_refused(home: Path) -> None:
    done = run(
        home, "search.py", "--data", "corpus", "--device", "cpu", "--jobs", usable_cores() + 1
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: --jobs must be at most the number of cores, {usable_cores()}, on a CPU, but got "
        f"{usable_cores() + 1}; use fewer\n"
    )
