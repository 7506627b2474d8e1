"""Searches of a few seconds, run whole by the real commands, undisturbed or killed by a plan."""

import contextlib
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path

import sqlalchemy
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from benchmarks.kills.account import Account, Home, account_of, differences
from benchmarks.kills.plan import Kill, Plan, kills_done, passings, processes
from benchmarks.kills.points import FOLDER, plant, plant_on_ray
from experiments.tracking.staged import STAGED
from tests.clusters import ray_cluster
from tests.helpers import ROOT, write_corpus
from tests.servers import PostgresServer
from tests.warm import Started, start_warm

PATIENCE_S = 600.0  # with a command; one that takes longer hangs
GRACE_S = 10.0  # for what a killed process held to be free
STUDY = "killed"
# Six trials of five evaluations each, of models that train in a moment.
SEARCH = (
    "--study", STUDY, "--steps", "10", "--trials", "6", "--keep", "2",
    "--fix", "dim_feedforward=32", "--choices", "d_model=80,128", "--choices", "nhead=1,2",
    "--choices", "num_layers=1,2",
)  # fmt: skip
UNORDERED = ("--sampler", "random", "--pruner", "none")  # so that it is the same in any order


@dataclass(frozen=True)
class Kind:
    """A way of running a search."""

    words: tuple[str, ...]  # of its command, besides SEARCH
    commands: int = 1  # at once
    is_alone: bool = False  # whether one trial runs at a time
    on_postgres: bool = False
    on_ray: bool = False
    all_killed: str = "all were killed"  # what a command says when no worker is left to it


KINDS = {
    "one": Kind(("--prune-presets",), is_alone=True),
    "two": Kind(("--jobs", "2", *UNORDERED)),
    "postgres": Kind(UNORDERED, commands=2, on_postgres=True),
    "ray": Kind(("--jobs", "2", "--engine", "ray", *UNORDERED), on_ray=True),
}


@dataclass
class Outcome:
    """What came of a search: the kills that it met, and what is not as it should be."""

    kind: str
    kills: list[Kill]
    seconds: float
    error: str = ""  # a command's that ended by itself, but not well
    different: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    temporary: int = 0  # folders in the folder for temporary files, which no program tidies up

    def verdict(self) -> str:
        """Return it in a word."""
        if self.error:
            return "error"
        return "different" if self.different else "left over" if self.left else "equal"


@dataclass
class Bench:
    """What all searches share: a corpus, an MLflow database to begin with, servers."""

    folder: Path
    corpus: Path
    template: Path
    at_end: contextlib.ExitStack  # what stops the servers
    keep: bool = False  # the folders of searches
    references: int = 2  # undisturbed searches that must be equal
    undisturbed: dict[str, tuple[Account, dict[str, int]]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    @cached_property
    def server(self) -> PostgresServer:
        """A PostgreSQL server, which is started when it is first needed."""
        server = PostgresServer(self.folder / "postgres")
        self.at_end.callback(server.close)
        return server

    @cached_property
    def address(self) -> str:
        """The address of a Ray cluster, which is started when it is first needed."""
        os.environ["PYTHONPATH"] = str(ROOT)  # where its workers find the points
        cluster = self.at_end.enter_context(ray_cluster(2))
        return str(cluster.address)

    def points(self, kind: str) -> dict[str, int]:
        """Return how often an undisturbed search of a kind passes each point."""
        return self._reference(kind)[1]

    def search(self, kind: str, kills: list[Kill], interval: float = 0.0) -> Outcome:
        """Run a search of a kind, killed at these points, each time again until it ends by itself,
        and compare what it leaves with an undisturbed one.
        """
        account, _ = self._reference(kind)
        plan = Plan(tuple(kills), interval, str(self.template))
        with self._home(kind) as (home, planned):
            outcome, found = self._run(kind, plan, home, planned)
            if not outcome.error:
                changes = differences(found, account)
                outcome.left = [line for line in changes if line.startswith("files ")]
                outcome.different = [line for line in changes if line not in outcome.left]
        return outcome

    def _reference(self, kind: str) -> tuple[Account, dict[str, int]]:
        """Return what undisturbed searches leave, which is the same, and what they pass."""
        if kind not in self.undisturbed:
            accounts = []
            for _ in range(self.references):
                with self._home(kind) as (home, planned):
                    plan = Plan(template=str(self.template))
                    outcome, account = self._run(kind, plan, home, planned)
                    assert not outcome.error, outcome.error
                    assert not outcome.left, outcome.left
                    accounts.append(account)
                    passed = passings(planned)
            assert not (changes := differences(accounts[0], accounts[-1])), "\n".join(changes)
            self.undisturbed[kind] = accounts[0], passed
        return self.undisturbed[kind]

    def _run(self, kind: str, plan: Plan, home: Home, planned: Path) -> tuple[Outcome, Account]:
        """Run a search by a plan, and return what came of it and what it has left."""
        plan.write(planned)
        began = time.monotonic()
        error = self._run_commands(KINDS[kind], home, planned)
        if not error and _age_halves(home):  # a search a while later removes those of the report
            error = self._run_commands(KINDS[kind], home, planned)
        kills = [kill for _, kill in kills_done(planned)]
        outcome = Outcome(kind, kills, time.monotonic() - began, error)
        if error:
            return outcome, {}
        account = account_of(home)
        account |= {f"files held: {line}": "" for line in self._still_held(kind, home, planned)}
        outcome.temporary = len(list((home.folder / "tmp").iterdir()))
        return outcome, account

    def _run_commands(self, kind: Kind, home: Home, planned: Path) -> str:
        """Run a search's commands, those that are killed again, until all end by themselves.

        Returns what the first one said that did not end well.
        """
        running = [self._start(kind, home, planned) for _ in range(kind.commands)]
        while running:
            ready = wait([each.process.sentinel for each in running], PATIENCE_S)
            ended = next((each for each in running if each.process.sentinel in ready), running[0])
            running.remove(ended)
            done = ended.wait(1.0)
            killed = [pid for pid, _ in kills_done(planned)]
            died = done.returncode == -signal.SIGKILL and ended.process.pid in killed
            if died or kind.all_killed in done.stderr:
                running.append(self._start(kind, home, planned))
            elif done.returncode:
                for each in running:
                    each.process.kill()
                return f"exit {done.returncode}: {done.stderr.strip()[-3000:]}"
        return ""

    def _start(self, kind: Kind, home: Home, planned: Path) -> Started:
        words = ["search.py", "--data", self.corpus, *SEARCH, *kind.words]
        words += ["--storage", home.storage] if kind.on_postgres else []
        words += ["--ray-address", self.address] if kind.on_ray else []
        variables = {FOLDER: str(planned), "TMPDIR": str(home.folder / "tmp")}
        return start_warm(home.folder, words, variables, plant_on_ray if kind.on_ray else plant)

    @contextlib.contextmanager
    def _home(self, kind: str) -> Iterator[tuple[Home, Path]]:
        """Give a new folder, with a database if need be, to a search, and a path for its plan."""
        number = next(self.numbers)
        folder = self.folder / f"{kind}-{number}"
        (folder / "tmp").mkdir(parents=True)
        storage = f"sqlite:///{folder}/mlruns/optuna.db"
        if KINDS[kind].on_postgres:
            storage = self.server.make(f"killed_{number}")
        yield Home(folder, storage, STUDY, KINDS[kind].is_alone), folder / "plan"
        if not self.keep:
            shutil.rmtree(folder)
            if KINDS[kind].on_postgres:
                self.server.drop(f"killed_{number}")

    def _still_held(self, kind: str, home: Home, planned: Path) -> list[str]:
        """Return the processes and locks that are there when a search has ended, and stay."""
        deadline = time.monotonic() + GRACE_S
        while (found := self._held(kind, home, planned)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def _held(self, kind: str, home: Home, planned: Path) -> list[str]:
        alive = [pid for pid in processes(planned) if Path(f"/proc/{pid}").exists()]
        found = [f"{len(alive)} processes"] if alive else []
        if KINDS[kind].on_postgres:
            name = sqlalchemy.make_url(home.storage).database
            of_study = f"database = (SELECT oid FROM pg_database WHERE datname = '{name}')"  # noqa: S608
            held = self.server.ask(
                f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {of_study}"  # noqa: S608
            )
            found += [f"{held} locks"] if held else []
        return found


def _age_halves(home: Home) -> list[Path]:
    """Let the files that MLflow was keeping when it was killed look old, and return them."""
    found = list((home.state / "artifacts").rglob(f"{STAGED}*"))
    for path in found:
        os.utime(path, (0, 0))
    return found


@contextlib.contextmanager
def open_bench(folder: Path, keep: bool = False, references: int = 2) -> Iterator[Bench]:
    """Make what searches share in a folder."""
    corpus, template = folder / "corpus", folder / "mlflow.db"
    write_corpus(corpus, speakers=8, per_speaker=12, test=5, frames=(2, 4))
    SqlAlchemyStore(f"sqlite:///{template}", folder.as_uri()).engine.dispose()
    with contextlib.ExitStack() as stack:
        yield Bench(folder, corpus, template, stack, keep, references)


def tally(outcomes: list[Outcome]) -> dict[tuple[str, str], Counter[str]]:
    """Return how many kills at each point, by kind, were in searches of each verdict."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for outcome in outcomes:
        for kill in outcome.kills:
            counts = found.setdefault((kill.point, outcome.kind), Counter())
            counts[outcome.verdict()] += 1
    return found
