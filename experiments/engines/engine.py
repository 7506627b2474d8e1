"""The seam between a search and what its workers run on: an engine starts them, replaces those that
are lost, ends them, and passes on what they say.

Who runs which trial is not its business: that stays with the study's storage and its locks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from experiments.context import TrainingContext
from experiments.study.search import StudyWorker
from speaker.common.errors import DeviceLostError, UserError
from speaker.common.signals import interruptible
from speaker.config import TrialConfig
from speaker.training.train import TrialResult

LOOK_UP_S = 1.0


@dataclass(frozen=True)
class Moved:
    """A worker's bar as it looks now."""

    text: str


@dataclass(frozen=True)
class Noted:
    """A line to be shown."""

    text: str


@dataclass(frozen=True)
class Ended:
    """A trial has ended. Its weights are in the store, not here."""

    number: int
    config: TrialConfig
    result: TrialResult


@dataclass(frozen=True)
class Failed:
    """A worker's last word: why it cannot go on."""

    reason: str
    is_bug: bool = False
    is_lost: bool = False  # its device is, for this process alone


@dataclass(frozen=True)
class Gone:
    """A worker is no more; `how` it was killed, or nothing where it had ended its work."""

    how: str = ""


Said = Moved | Noted | Ended


class Audience(Protocol):
    """Who hears what the workers say."""

    def hear(self, place: int, said: Said) -> None:
        """Hear a worker, by its place from 0."""

    def tick(self) -> None:
        """See how time goes by: called every second or so while nobody says anything."""


@dataclass(frozen=True)
class Engine(ABC):
    """What the workers of a search run on."""

    jobs: int = 1  # workers at once

    @property
    def jobs_here(self) -> int:
        """By how many workers what this process may use of its machine is divided."""
        return self.jobs

    def settle(self, context: TrainingContext) -> TrainingContext:
        """Return what a worker computes with, on what the engine has.

        Raises UserError where that is too little for the jobs.
        """
        return context

    @abstractmethod
    def run(self, worker: StudyWorker, jobs: int, audience: Audience) -> None:
        """Work with so many workers at the study that `worker` has open, until nothing is left for
        them to do or time is up.

        Raises UserError, of which DeviceLostError is one, for what no worker can go on with, and
        RuntimeError for a bug in one. An interruption ends them all, and passes through.
        """


class Crew(ABC):
    """Workers outside this process, by their places from 0."""

    @abstractmethod
    def start(self, place: int) -> None:
        """Start a worker."""

    @abstractmethod
    def listen(self, seconds: float) -> Iterable[tuple[int, Said | Failed | Gone]]:
        """Wait until somebody says something, but no longer than this, and return it."""

    @abstractmethod
    def stop(self) -> None:
        """End those that still run; their trials can be resumed."""


def supervise(crew: Crew, jobs: int, audience: Audience) -> None:
    """Keep `jobs` workers at work until all have ended their work: see Engine.run.

    Of those that are killed, `jobs` are replaced for each trial that ends.
    """
    alive, spare = set(range(jobs)), jobs
    try:
        for place in range(jobs):
            crew.start(place)
        while alive:
            with interruptible():
                heard = crew.listen(LOOK_UP_S)
            audience.tick()
            for place, said in heard:
                if isinstance(said, Moved | Noted | Ended):
                    audience.hear(place, said)
                    spare = jobs if isinstance(said, Ended) else spare
                elif isinstance(said, Gone) and said.how and place in alive and spare:
                    spare -= 1
                    crew.start(place)
                    lost = f"worker {place + 1} was killed ({said.how}); another takes its place"
                    audience.hear(place, Noted(lost))
                elif place in alive:
                    alive.remove(place)
                    if lost := _explain_loss(said, place, len(alive)):
                        audience.hear(place, Noted(lost))
    finally:
        crew.stop()


def _explain_loss(said: Failed | Gone, place: int, others: int) -> str:
    """Return in a line how a worker was lost, so that `others` are left; nothing where it had ended
    its work.

    Raises UserError when nobody is left, and what no worker can go on with.
    """
    if isinstance(said, Failed):
        if said.is_bug:
            raise RuntimeError(f"a worker met a bug:\n{said.reason}")
        if not said.is_lost:
            raise UserError(said.reason)
        if not others:
            raise DeviceLostError(said.reason)
        return f"worker {place + 1} ended: {said.reason}; the other {others} go on"
    if not said.how:
        return ""
    if not others:
        raise UserError(
            "one worker must live to the end, but all were killed, and those that took their "
            f"places, worker {place + 1} by {said.how}; if memory is short, use fewer --jobs; run "
            "the same command to resume"
        )
    return f"worker {place + 1} was killed ({said.how}); the other {others} go on"
