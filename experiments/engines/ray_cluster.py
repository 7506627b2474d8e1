"""The engine of many machines: workers as tasks of a Ray cluster, which is there already or is made
on this machine.

Ray is imported when it is used: it need not be installed.
"""

import pickle
import time
from dataclasses import dataclass
from typing import Any

from experiments.context import TrainingContext, with_threads
from experiments.engines.engine import Audience, Crew, Engine, Failed, Gone, Noted, Said, supervise
from experiments.engines.mailbox import Mailbox
from experiments.engines.parcel import arrays_of, seal
from experiments.engines.placement import (
    Node,
    elsewhere,
    refuse_files,
    share_for_each,
    threads_for_each,
)
from experiments.engines.ray_connection import connect, find_nodes, import_ray
from experiments.engines.ray_task import Task, work_in_task
from experiments.study.search import StudyWorker, WorkerSpec
from speaker.common.errors import UserError, first_line
from speaker.common.signals import uninterrupted

PATIENCE_S = 30  # with workers that are told to stop: a store may be slow
WAIT_S = 120  # for a worker to begin, until that is said

LOSSES = {  # what Ray raises for a worker that is no more
    "WorkerCrashedError": "its process died",
    "NodeDiedError": "its machine is gone",
    "LocalRayletDiedError": "its machine is gone",
    "OutOfMemoryError": "its machine had no memory left",
    "TaskCancelledError": "its task was cancelled",
    "OwnerDiedError": "its machine is gone",
    "ObjectLostError": "its machine is gone",
}


@dataclass(frozen=True)
class RayCluster(Engine):
    """Work in tasks of a Ray cluster."""

    address: str = ""  # of one that is there; else one is made
    gpus_per_trial: float | None = None

    @property
    def jobs_here(self) -> int:
        """How many of the jobs divide what this process sees of the machine: none but itself."""
        return 1

    def settle(self, context: TrainingContext) -> TrainingContext:
        """Return a context for one of the jobs: with as many threads as the cluster has for each.

        Raises UserError where it has too little.
        """
        nodes = connect(self.address)
        if context.compute.device.type == "cuda":
            self._share(nodes)
            return context
        if self.gpus_per_trial:
            raise UserError(
                f"--gpus-per-trial is of a GPU, but the device is {context.compute.device}; leave "
                "it out, or start the search on a machine with a GPU"
            )
        return with_threads(context, threads_for_each([node.cores for node in nodes], self.jobs))

    def run(self, worker: StudyWorker, jobs: int, audience: Audience) -> None:
        """Work at a study: see Engine."""
        nodes = connect(self.address)
        refuse_files(worker.spec, nodes)
        on_gpu = worker.spec.context.compute.device.type == "cuda"
        crew = RayCrew(worker.spec, self._share(nodes) if on_gpu else 0.0)
        ray = import_ray(is_local=not self.address)
        try:
            supervise(crew, jobs, audience)
        except ray.exceptions.RayError as error:
            raise UserError(
                "a search on Ray needs its cluster to the end, but that no longer answers "
                f"({first_line(error)}); run the same command to resume"
            ) from error

    def _share(self, nodes: list[Node]) -> float:
        """Return the part of a GPU that each job gets."""
        return share_for_each([node.gpus for node in nodes], self.jobs, self.gpus_per_trial)


class RayCrew(Crew):
    """Tasks, and a mailbox beside this process for what they say."""

    def __init__(self, spec: WorkerSpec, gpus: float) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._spec, self._gpus = spec, gpus
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        box = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1)
        self._mailbox = box.remote()
        self._parcel = ray.put(seal(spec))
        self._arrays: Any = None
        self._tasks: dict[Any, int] = {}
        self._waiting: dict[int, float] = {}  # places of which nothing was heard, and until when
        threads = 0 if gpus else spec.context.compute.threads
        # A worker is replaced by its crew, and leaves nothing in its process to the next.
        needs = {"num_cpus": threads, "num_gpus": gpus, "max_retries": 0, "max_calls": 1}
        self._work = ray.remote(**needs)(work_in_task)

    def start(self, place: int) -> None:
        """Start a worker, as soon as the cluster has room for it."""
        import ray

        with uninterrupted():
            nodes = find_nodes()
            refuse_files(self._spec, nodes)
            if self._arrays is None and elsewhere(nodes):
                self._arrays = ray.put(arrays_of(self._spec.context.pack))
            here = ray.util.get_node_ip_address()
            task = Task(place, self._parcel, self._arrays, self._mailbox, self._gpus, here)
            self._tasks[self._work.remote(task)] = place
            self._waiting[place] = time.monotonic() + WAIT_S

    def listen(self, seconds: float) -> list[tuple[int, Said | Failed | Gone]]:
        """Wait until a worker says something, and return that."""
        import ray

        with uninterrupted():  # Ray would make another exception of an interruption
            ended, _ = ray.wait([*self._tasks], num_returns=len(self._tasks), timeout=0)
            try:
                letters = ray.get(self._mailbox.take.remote(0 if ended else seconds))
            except ray.exceptions.RayActorError:
                letters = []  # it was killed, and is started again
            ends = [(self._tasks.pop(task), _last_word(task)) for task in ended]
        said = [(place, pickle.loads(words)) for place, words in letters]  # noqa: S301  # our own workers'
        return [*said, *self._missing({place for place, _ in said + ends}), *ends]

    def _missing(self, heard: set[int]) -> list[tuple[int, Said]]:
        """Return, once for each, that workers of whom nothing is heard have no place as it seems;
        `heard` are those that now are.
        """
        now = time.monotonic()
        self._waiting = {p: until for p, until in self._waiting.items() if p not in heard}
        late = [place for place, until in self._waiting.items() if until < now]
        for place in late:
            del self._waiting[place]
        text = "worker {} has not begun after {} seconds: the cluster has no room, or is slow"
        return [(place, Noted(text.format(place + 1, WAIT_S))) for place in late]

    def stop(self) -> None:
        """End the workers, as SIGINT does, and those that do not end, as SIGKILL does."""
        import ray

        with uninterrupted():
            for task in self._tasks:
                ray.cancel(task)
            if tasks := [*self._tasks]:
                _, left = ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE_S)
                for task in left:
                    ray.cancel(task, force=True)
            ray.kill(self._mailbox)


def _last_word(task: Any) -> Failed | Gone:
    """Return how a task ended."""
    import ray

    try:
        word = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return Failed(str(error), is_bug=True)
    except ray.exceptions.RayError as error:
        if how := LOSSES.get(type(error).__name__):
            return Gone(how)
        return Failed(f"Ray cannot run a worker: {first_line(error)}; see its logs")
    return word if isinstance(word, Failed) else Gone(word)
