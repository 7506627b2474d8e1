"""Stores that are away, locked or full in the middle of a search: it waits, and loses nothing."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pgserver
import pytest

from experiments.analysis.confirmation import latest_confirmation
from experiments.confirm import Machine, confirm_best
from experiments.context import TrainingContext
from experiments.engines.engine import Ended, Failed, Noted, Said
from experiments.engines.inline import Inline
from experiments.engines.worker import work, work_apart
from experiments.outages import Patience
from experiments.proposals.attributes import RUN_ID
from experiments.proposals.space import HOMEWORK
from experiments.report.publish import publish
from experiments.study import storage
from experiments.study import trial as trial_module
from experiments.study.search import StudyWorker, WorkerSpec
from experiments.study.trial import listen
from experiments.tracking import names
from speaker.common.errors import UserError
from speaker.training.metrics import OBJECTIVE, Metrics
from speaker.training.outcome import Outcome
from speaker.training.train import Report
from tests.helpers import PLAN, refused
from tests.servers import PostgresServer, free_port, serve, stop

STEPS = [2, 4]  # of the evaluations of each trial
SMALL = HOMEWORK.narrowed({"d_model": 80, "num_layers": 1}, {})
SEARCH = replace(PLAN, space=SMALL, presets=(), trials=3)
# How long an outage lasts, with the program's own patience; if 0, until it is waited for.
OUTAGE_S = float(os.environ.get("OUTAGE_S", "0"))


class Outage(ABC):
    """Something that a search needs, and that goes away and comes back."""

    says: str  # the cause, in the words of who fails

    def __init__(self, state: Path) -> None:
        self.state = state
        self.storage = f"sqlite:///{state}/optuna.db"
        self.tracking = f"sqlite:///{state}/mlflow.db"

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def end(self) -> None: ...

    def clean_up(self) -> None:
        """End what runs or is mounted."""
        return


class Locked(Outage):
    """A database that another process writes to and does not let go."""

    says = "database is locked"
    name = "optuna.db"

    def begin(self) -> None:
        self.connection = sqlite3.connect(
            self.state / self.name, isolation_level=None, check_same_thread=False
        )
        self.connection.execute("BEGIN EXCLUSIVE")

    def end(self) -> None:
        self.connection.execute("ROLLBACK")
        self.connection.close()


class RunsLocked(Locked):
    name = "mlflow.db"


class ServerAway(Outage):
    """An MLflow server that is killed, and started again."""

    says = "does not answer: there is no server"

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.port = free_port()
        self.tracking = f"http://127.0.0.1:{self.port}"
        self.server = serve(state, self.port)

    def begin(self) -> None:
        stop(self.server)

    def end(self) -> None:
        self.server = serve(self.state, self.port)

    def clean_up(self) -> None:
        stop(self.server)


class PostgresAway(Outage):
    """A PostgreSQL server that is stopped at once, as by a crash, and started again: all locks are
    gone with it.
    """

    says = "connection to server"

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.server = PostgresServer(state / "postgres")
        self.storage = self.server.url

    def control(self, *words: str) -> None:
        control = shutil.which("pg_ctl", path=str(Path(pgserver.__file__).parent / "pginstall/bin"))
        owner = (self.state / "postgres").stat().st_uid
        subprocess.run(
            [str(control), "-D", str(self.state / "postgres"), "-w", *words],
            user=owner,
            check=True,
            capture_output=True,
        )

    def begin(self) -> None:
        options = (self.state / "postgres" / "postmaster.opts").read_text()
        self.options = options.partition('"-k"')[2].split('"')[1]
        self.control("stop", "-m", "immediate")

    def end(self) -> None:
        self.control(
            "-l", str(self.state / "postgres" / "log"), "-o", f'-k "{self.options}" -h ""', "start"
        )

    def clean_up(self) -> None:
        self.server.close()


class DiskFull(Outage):
    """A disk that something else has filled: a small one in memory, with all state on it."""

    says = "full"

    def __init__(self, state: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can mount a small disk")
        self.disk = state / "disk"
        self.disk.mkdir()
        mounted = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.disk)]
        if subprocess.run(mounted, check=False, capture_output=True).returncode:
            pytest.skip("no small disk can be mounted here")
        super().__init__(self.disk)

    def begin(self) -> None:
        with contextlib.suppress(OSError), (self.disk / "others").open("wb", 0) as others:
            while True:
                others.write(bytes(1 << 16))
        with contextlib.suppress(OSError), (self.disk / "rest").open("wb", 0) as rest:
            while True:
                rest.write(b"0")

    def end(self) -> None:
        (self.disk / "others").unlink()

    def clean_up(self) -> None:
        subprocess.run(["umount", "-l", str(self.disk)], check=True)


@pytest.fixture(params=[Locked, RunsLocked, ServerAway, PostgresAway, DiskFull])
def outage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Outage]:
    if not OUTAGE_S:
        monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.2)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    made: Outage = request.param(tmp_path)
    yield made
    made.clean_up()


def fail_in_trial(monkeypatch: pytest.MonkeyPatch, number: int, fail: Callable[[], None]) -> None:
    """Let something fail just before a trial's first evaluation is heard."""
    failures: list[int] = []

    def failing(trial: optuna.trial.Trial, prune_presets: bool) -> Report:
        report = listen(trial, prune_presets)

        def reported(step: int, metrics: Metrics) -> bool:
            if trial.number == number and not failures:
                failures.append(step)
                fail()
            return report(step, metrics)

        return reported

    monkeypatch.setattr(trial_module, "listen", failing)


def rows_of(worker: StudyWorker) -> list[tuple[int, str, list[tuple[int, float]]]]:
    """Return what both stores hold of each trial, which must be the same, each row once."""
    found = []
    for trial in worker.study.get_trials():
        run = worker.shared.store.client.get_run(trial.user_attrs[RUN_ID])
        rows = worker.shared.store.client.get_metric_history(run.info.run_id, OBJECTIVE)
        assert [row.step for row in rows] == STEPS
        assert {row.step: row.value for row in rows} == trial.intermediate_values
        assert (run.info.status, trial.state.name) == ("FINISHED", "COMPLETE")
        found.append(
            (trial.number, run.data.tags[names.SHA256], sorted(trial.intermediate_values.items()))
        )
    assert len(worker.shared.store.trial_runs("s")) == len(found)
    return found


@pytest.mark.slow
def test_an_outage_costs_no_trial_and_no_row(
    outage: Outage,
    context: TrainingContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = replace(context, checkpoints=outage.state / "checkpoints")
    spec = WorkerSpec(SEARCH, context, outage.storage, outage.tracking)
    worker, notes, ended = spec.open(), [""], []

    def hear(said: Said) -> None:
        if isinstance(said, Noted):
            notes.append(said.text)
            if "waiting, for up to 1 h" in said.text and not OUTAGE_S:
                outage.end()
        elif isinstance(said, Ended):
            ended.append((said.number, said.result.outcome))

    def begin() -> None:
        outage.begin()
        if OUTAGE_S:
            threading.Timer(OUTAGE_S, outage.end).start()

    fail_in_trial(monkeypatch, 1, begin)
    work(worker, hear)
    worker.close(as_asked=True)
    assert ended == [(number, Outcome.COMPLETE) for number in range(3)]
    told = "\n".join(notes)
    assert "#1: training goes on, its rows wait: " in told
    assert outage.says in told
    assert "#1: it answers again after" in told
    found = rows_of(worker)
    getattr(worker.study._storage, "_backend").engine.dispose()  # noqa: B009

    undisturbed = WorkerSpec(
        SEARCH, context, f"sqlite:///{tmp_path}/other.db", f"sqlite:///{tmp_path}/others.db"
    ).open()
    work(undisturbed, lambda _said: None)
    assert found == rows_of(undisturbed)


@pytest.mark.parametrize("kind", [Locked, RunsLocked])
def test_a_worker_that_joins_waits_for_a_locked_store(
    kind: type[Locked], state: Path, context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.1)
    locked = kind(state)
    spec = WorkerSpec(replace(SEARCH, trials=1), context, locked.storage, locked.tracking)
    spec.open()
    locked.begin()
    said = list[Said | Failed]()

    def hear(heard: Said | Failed) -> None:
        said.append(heard)
        if isinstance(heard, Noted) and "waiting, for up to 1 h" in heard.text:
            locked.end()

    work_apart(lambda: spec, hear)
    assert any(isinstance(each, Noted) and locked.says in each.text for each in said)
    assert [each.number for each in said if isinstance(each, Ended)] == [0]
    assert not [each for each in said if isinstance(each, Failed)]


def test_a_store_that_is_locked_at_the_start_is_one_line(
    state: Path, context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.1)
    locked = Locked(state)
    spec = WorkerSpec(SEARCH, context, locked.storage, locked.tracking)
    spec.open()
    locked.begin()
    said = refused(spec.open)
    assert said.endswith("database is locked); end what holds it")
    locked.end()
    assert spec.open().finished() == []


def searched(locked: Locked, context: TrainingContext) -> StudyWorker:
    """Return the worker of a search that has ended, of two trials."""
    search = replace(SEARCH, trials=2)
    worker = WorkerSpec(search, context, locked.storage, locked.tracking).open()
    work(worker, lambda _said: None)
    worker.close(as_asked=True)
    return worker


def unlocking(worker: StudyWorker, locked: Locked) -> list[str]:
    """End a lock as soon as a worker waits for it; return what it will say of that."""
    notes: list[str] = []

    def say(note: str) -> None:
        notes.append(note)
        if note.startswith("waiting"):
            locked.end()

    worker.say_by(say)
    return notes


def test_a_search_that_has_ended_waits_for_a_locked_store(
    state: Path, context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.1)
    locked = Locked(state)
    worker = searched(locked, context)

    questions: tuple[Callable[[], object], ...] = (
        worker.finished, worker.steps, worker.planned, worker.missing, worker.ended_by,
    )  # fmt: skip
    for question in questions:
        notes = unlocking(worker, locked)
        answer = question()
        locked.begin()
        assert question() == answer
        assert len(notes) == 2
        assert locked.says in notes[0]


def test_a_report_after_a_search_waits_for_a_locked_store(
    state: Path, context: TrainingContext
) -> None:
    locked = RunsLocked(state)
    worker = searched(locked, context)

    notes = unlocking(worker, locked)
    locked.begin()
    assert publish(worker.shared.store, "s", worker.patience.insist).endswith("report.html")
    assert locked.says in notes[0]


def test_a_confirmation_after_a_search_waits_for_a_locked_store(
    state: Path, context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.1)
    locked = Locked(state)
    worker = searched(locked, context)
    store = worker.shared.store
    locked.begin()
    with pytest.raises(UserError, match="database is locked"):
        confirm_best(store, "s", 2, 1, Machine(context, locked.storage, Inline()))
    threading.Timer(1, locked.end).start()
    machine = Machine(context, locked.storage, Inline(), was_open=True)
    confirm_best(store, "s", 2, 1, machine)
    assert latest_confirmation(store, "s") is not None


def test_beyond_patience_the_worker_stops_and_its_trial_is_resumed(
    state: Path, context: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_TIMEOUT_S", 0.1)
    locked = Locked(state)
    spec = WorkerSpec(SEARCH, context, locked.storage, locked.tracking, store_patience=0.3)
    worker = spec.open()
    fail_in_trial(monkeypatch, 1, locked.begin)
    with pytest.raises(
        UserError, match=r"^a store or disk failed \(.*database is locked\); fix that, and run the same command to resume$"
    ):  # fmt: skip
        work(worker, lambda _said: None)
    run_id = worker.shared.store.trial_runs("s", "tags.trial = '1'")[0].info.run_id
    assert worker.shared.store.client.get_run(run_id).info.status == "KILLED"
    locked.end()
    work(spec.open(), lambda _said: None)
    assert [number for number, _, _ in rows_of(worker)] == [0, 1, 2]


class Clock:
    """Seconds that pass while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_patience_tries_again_ever_more_seldom_and_says_so_once() -> None:
    clock, notes, tries = Clock(), list[str](), list[float]()

    def call() -> str:
        tries.append(clock.now)
        if clock.now < 40:
            raise OSError(28, "No space left on device")
        return "done"

    patience = Patience(60, (OSError,), notes.append, clock, clock.sleep)
    assert patience.insist(call) == "done"
    assert tries == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 30.5, 45.5]
    assert notes == [
        "waiting, for up to 1 min: [Errno 28] No space left on device",
        "it answers again after 46 s",
    ]


def test_patience_ends_to_the_second_and_does_not_wait_for_what_lasts() -> None:
    clock, notes = Clock(), list[str]()
    patience = Patience(10, (OSError,), notes.append, clock, clock.sleep)

    def refuse(number: int) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match="No space"):
        patience.insist(lambda: refuse(28))
    assert clock.now == 10
    with pytest.raises(FileNotFoundError):
        patience.insist(lambda: refuse(2))
    assert clock.now == 10
    assert len(notes) == 1
