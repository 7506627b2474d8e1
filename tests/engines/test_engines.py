"""What an engine is: one suite for all of them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from experiments.context import TrainingContext
from experiments.engines.choice import engine_of
from experiments.engines.engine import Ended, Engine, Said
from experiments.engines.inline import Inline
from experiments.engines.processes import Processes
from experiments.engines.ray_cluster import RayCluster
from experiments.proposals.attributes import RUN_ID
from experiments.study.search import WorkerSpec
from experiments.verbs.flags import add_engine
from speaker.common.cli import Parser
from speaker.common.devices import configure_process, usable_cores
from speaker.data.protocol import Protocol
from tests.helpers import PLAN, assert_whole, refused, run, start

HAS_RAY = find_spec("ray") is not None
NAMES = ["inline", "processes", pytest.param("ray", marks=pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed"))]  # fmt: skip
SEARCH = (
    "search.py", "--data", "corpus", "--steps", "5", "--sampler", "random", "--pruner", "none",
    "--choices", "d_model=80,128", "--choices", "num_layers=1",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(usable_cores() < 2, reason="two jobs need two cores"),
]


@dataclass
class Heard:
    """What workers have said."""

    ended: list[int]

    def hear(self, place: int, said: Said) -> None:
        assert place in (0, 1)
        if isinstance(said, Ended):
            self.ended.append(said.number)

    def tick(self) -> None:
        """Nothing is shown."""


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(name: str, request: pytest.FixtureRequest) -> Engine:
    if name == "ray":
        return RayCluster(2, request.getfixturevalue("cluster").address)
    return Inline() if name == "inline" else Processes(2)


@pytest.fixture
def words(name: str, request: pytest.FixtureRequest) -> list[str]:
    """The flags of an engine."""
    words = ["--engine", name, "--jobs", "1" if name == "inline" else "2"]
    if name == "ray":
        words += ["--ray-address", request.getfixturevalue("cluster").address]
    return words


@pytest.fixture
def spec(state: Path, context: TrainingContext) -> WorkerSpec:
    return WorkerSpec(PLAN, context, f"sqlite:///{state}/optuna.db", f"sqlite:///{state}/mlflow.db")


def run_all(engine: Engine, spec: WorkerSpec) -> dict[int, tuple[object, ...]]:
    """Run a search; return what each of its trials was and gave, by number."""
    worker, heard = spec.open(), Heard([])
    engine.run(worker, engine.jobs, heard)
    trials = worker.study.get_trials()
    assert [trial.number for trial in trials] == sorted(heard.ended) == list(range(4))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    runs = worker.shared.store.runs("tags.kind = 'trial'")
    weights = {each.info.run_id: each.data.tags["weights.sha256"] for each in runs}
    assert len(weights) == 4
    return {
        trial.number: (trial.params, trial.value, weights[trial.user_attrs[RUN_ID]])
        for trial in trials
    }


@pytest.fixture(scope="module")
def expected(
    context: TrainingContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, tuple[object, ...]]]:
    """What the trials are and give in this process, on one thread."""
    folder, threads = tmp_path_factory.mktemp("inline"), torch.get_num_threads()
    urls = f"sqlite:///{folder}/optuna.db", f"sqlite:///{folder}/mlflow.db"
    configure_process(context.compute)
    yield run_all(Inline(), WorkerSpec(PLAN, context, *urls))
    torch.set_num_threads(threads)


def holders(folder: Path) -> set[int]:
    """Return the ids of the processes that have a file open below a folder."""
    return {
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if any(target.startswith(f"{folder}/") for target in _open_files(process))
    }


def _open_files(process: Path) -> Iterator[str]:
    try:
        for link in (process / "fd").iterdir():
            yield os.readlink(link)
    except OSError:  # it has ended
        return


def wait_for_end(process: "subprocess.Popen[str]") -> None:
    """Wait for a trial's line."""
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("#"):
        assert line, process.communicate()[1]


def test_all_train_the_same_trials(
    engine: Engine, spec: WorkerSpec, expected: dict[int, tuple[object, ...]]
) -> None:
    assert run_all(engine, spec) == expected


def test_a_bug_in_a_worker_stops_all_and_shows_where(engine: Engine, spec: WorkerSpec) -> None:
    spec = replace(spec, context=replace(spec.context, protocol=Protocol(crop_len=-1)))
    worker = spec.open()
    with pytest.raises((RuntimeError, ValueError)) as caught:
        engine.run(worker, engine.jobs, Heard([]))
    # Inline it is Python's own traceback that shows the place.
    places = [str(entry.path) for entry in caught.traceback] + [str(caught.value)]
    assert any("experiments/study/trial.py" in place for place in places)
    assert TrialState.FAIL in [trial.state for trial in worker.study.get_trials()]


def test_what_a_worker_cannot_mend_is_one_line(engine: Engine, spec: WorkerSpec) -> None:
    worker = spec.open()
    if engine.jobs == 1:
        pytest.skip("the worker that is open already has looked")
    worker.spec = replace(spec, settings=replace(PLAN, seed=1))
    said = refused(lambda: engine.run(worker, engine.jobs, Heard([])))
    assert "seed is 0 there and 1 here" in said
    assert worker.study.get_trials() == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_stopped_it_leaves_no_process_and_goes_on(
    home: Path, words: list[str], signum: signal.Signals
) -> None:
    process = start(home, *SEARCH, "--trials", 8, *words, start_new_session=True)
    wait_for_end(process)
    os.killpg(process.pid, signum)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, errors
    assert errors.endswith(f"run the same command to resume.\nStopped by {signum.name}.\n")
    deadline = time.monotonic() + 10
    while left := holders(home):
        assert time.monotonic() < deadline, f"processes {left} outlived the search"
        time.sleep(0.1)
    checkpoints = {path.stem for path in (home / "mlruns" / "checkpoints").glob("*.checkpoint")}
    study = optuna.load_study(
        study_name="homework-corpus", storage=f"sqlite:///{home}/mlruns/optuna.db"
    )
    running = {
        t.user_attrs.get(RUN_ID) for t in study.get_trials() if t.state == TrialState.RUNNING
    }
    assert checkpoints <= running
    done = run(home, *SEARCH, "--trials", 8, *words)
    assert done.returncode == 0, done.stderr
    assert_whole(home, 8)


def test_who_is_killed_is_replaced(home: Path, words: list[str]) -> None:
    if "inline" in words:
        pytest.skip("then nobody is left")
    process = start(home, *SEARCH, "--trials", 6, *words)
    wait_for_end(process)
    victim = next(iter(holders(home) - {process.pid}))
    os.kill(victim, signal.SIGKILL)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert re.search(r"^worker [12] was killed \(.+\); another takes its place$", output, re.M), (
        output
    )
    assert_whole(home, 6)


def refuse(*words: str) -> str:
    flags = Parser(prog="search.py")
    add_engine(flags)
    return refused(lambda: engine_of(flags.parse_args(words)))


def test_flags_that_do_not_go_together_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuse("--jobs", "2", "--engine", "inline") == (
        "--engine inline is one process, but got --jobs 2; use --engine processes"
    )
    assert refuse("--ray-address", "127.0.0.1:6379") == (
        "--ray-address is for --engine ray, but got --engine inline; leave one out"
    )
    assert refuse("--jobs", "2", "--gpus-per-trial", "0.5") == (
        "--gpus-per-trial is for --engine ray, but got --engine processes; leave one out"
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refuse("--engine", "ray").startswith("--engine ray needs Ray, but it is not installed (")
