"""When a search is killed: a plan is a folder that all processes of a search share.

Whichever of them is the first to pass a planned point for the planned time kills itself, as `kill
-9` does, and the others are awaited anew.
"""

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PLAN, STATE, PASSED, PIDS = "plan.json", "state.json", "passed", "pids"


@dataclass(frozen=True)
class Kill:
    """A kill at the `number`-th passing of a point, counted since the kill before."""

    point: str
    number: int

    def __str__(self) -> str:
        return f"{self.point}@{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Kill":
        """Return the kill that `str` gave. Raises ValueError for what is none."""
        point, _, number = text.rpartition("@")
        return cls(point, int(number))


@dataclass(frozen=True)
class Plan:
    """What the processes of a search are to do besides searching."""

    kills: tuple[Kill, ...] = ()  # none: passings are counted
    interval: float = 0.0  # seconds between two checkpoints
    template: str = ""  # an MLflow database to begin with, instead of its migrations

    def write(self, folder: Path) -> None:
        """Begin the plan, in a new folder."""
        (folder / PASSED).mkdir(parents=True)
        kills = [str(kill) for kill in self.kills]
        (folder / PLAN).write_text(json.dumps([kills, self.interval, self.template]))
        (folder / STATE).write_text(json.dumps([]))

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """Return the plan of a folder."""
        kills, interval, template = json.loads((folder / PLAN).read_text())
        return cls(tuple(map(Kill.parse, kills)), interval, template)


def kills_done(folder: Path) -> list[tuple[int, Kill]]:
    """Return the processes that were killed so far, each with its kill, in their order."""
    plan = Plan.read(folder).kills
    return [(pid, plan[which]) for pid, which in json.loads((folder / STATE).read_text())]


def passings(folder: Path) -> dict[str, int]:
    """Return how often each point was passed, where no kill was planned."""
    return {path.name: path.stat().st_size for path in sorted((folder / PASSED).iterdir())}


def processes(folder: Path) -> set[int]:
    """Return all processes that were planted."""
    return set(map(int, (folder / PIDS).read_text().split()))


class Gate:
    """What a planted process passes before and after each write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plan = Plan.read(folder).kills
        with (folder / PIDS).open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        self._pause = False

    def awaits(self, write: str) -> bool:
        """Tell whether the passings of a write matter."""
        return not self._plan or any(kill.point.startswith(f"{write}.") for kill in self._plan)

    def passing(self, point: str, dying: Callable[[], object] = bool) -> None:
        """Count a passing of a point; die, by `dying` first, where that is planned."""
        if self._pause:
            return
        self._pause = True  # what counts writes, too
        try:
            self._count(point, dying)
        finally:
            self._pause = False

    def _count(self, point: str, dying: Callable[[], object]) -> None:
        if not self._plan:
            self._passed(point)
            return
        with _locked(self._folder / STATE) as stream:
            done = json.load(stream)
            before = [which for _, which in done]
            for which, kill in enumerate(self._plan):
                if kill.point != point or which in before:
                    continue
                if self._passed(f"{point}, {which} after {len(done)}") == kill.number:
                    dying()
                    stream.seek(0)
                    json.dump([*done, [os.getpid(), which]], stream)
                    stream.flush()
                    os.kill(os.getpid(), signal.SIGKILL)

    def _passed(self, name: str) -> int:
        """Count a passing, and return how many there were."""
        with (self._folder / PASSED / name).open("ab") as stream:
            stream.write(b".")
            stream.flush()
            return os.fstat(stream.fileno()).st_size


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    with path.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream
