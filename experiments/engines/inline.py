"""The engine that is this process: one worker, for one job at a time, a debugger, or a test."""

from functools import partial

from experiments.engines.engine import Audience, Engine
from experiments.engines.worker import work
from experiments.study.search import StudyWorker


class Inline(Engine):
    """Work in this process, with the worker that is open already."""

    def run(self, worker: StudyWorker, jobs: int, audience: Audience) -> None:
        """Work at a study: see Engine."""
        assert jobs == 1  # noqa: S101  # a process is one worker
        work(worker, partial(audience.hear, 0))
