"""The engine of many machines: workers as tasks of a Ray cluster, which is there already or is made
on this machine.

Ray is imported when it is used: it need not be installed.
"""

import contextlib
import logging
import math
import os
import pickle
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.context import TrainingContext, with_threads
from experiments.engines.engine import Audience, Crew, Engine, Failed, Gone, Said, supervise
from experiments.engines.mailbox import Mailbox
from experiments.engines.parcel import arrays_of, seal
from experiments.engines.ray_task import Task, work_in_task
from experiments.study.search import StudyWorker, WorkerSpec
from experiments.urls import shown, sqlite_path
from speaker.common.devices import usable_cores
from speaker.common.errors import UserError, first_line
from speaker.common.paths import PROGRAM
from speaker.common.signals import STOPPING, Interrupted, uninterrupted

PATIENCE_S = 30  # with workers that are told to stop: a store may be slow
ANSWER_S = 10  # for a cluster to take a connection
STORE_BYTES = 128 << 20  # of shared memory for a cluster of this machine: its workers have the pack
FINEST = 10_000  # Ray counts parts of a GPU so

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
class Node:
    """A machine of a cluster, or a part of one."""

    address: str
    cores: int
    gpus: int
    is_here: bool  # on this machine


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
        nodes = self.connect()
        if context.compute.device.type == "cuda":
            self._share(nodes)
            return context
        if self.gpus_per_trial:
            raise UserError(
                f"--gpus-per-trial is of a GPU, but the device is {context.compute.device}; leave "
                "it out, or start the search on a machine with a GPU"
            )
        return with_threads(context, threads_for_each([node.cores for node in nodes], self.jobs))

    def connect(self) -> list[Node]:
        """Connect to the cluster, or make it, if that is not done yet; return its machines.

        Raises UserError where there is none, or none that lets us in.
        """
        ray = import_ray(is_local=not self.address)
        if not ray.is_initialized():
            with _keeping_signal_handlers():
                _start() if not self.address else _join(self.address)
        return _nodes()

    def run(self, worker: StudyWorker, jobs: int, audience: Audience) -> None:
        """Work at a study: see Engine."""
        nodes = self.connect()
        refuse_files(worker.spec, nodes)
        on_gpu = worker.spec.context.compute.device.type == "cuda"
        crew = RayCrew(worker.spec, self._share(nodes) if on_gpu else 0.0)
        supervise(crew, jobs, audience)

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
        box = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here)
        self._mailbox = box.remote()
        self._parcel = ray.put(seal(spec))
        self._arrays: Any = None
        self._tasks: dict[Any, int] = {}
        threads = 0 if gpus else spec.context.compute.threads
        # A worker is replaced by its crew, and leaves nothing in its process to the next.
        needs = {"num_cpus": threads, "num_gpus": gpus, "max_retries": 0, "max_calls": 1}
        self._work = ray.remote(**needs)(work_in_task)

    def start(self, place: int) -> None:
        """Start a worker, as soon as the cluster has room for it."""
        import ray

        with uninterrupted():
            nodes = _nodes()
            refuse_files(self._spec, nodes)
            if self._arrays is None and _elsewhere(nodes):
                self._arrays = ray.put(arrays_of(self._spec.context.pack))
            task = Task(place, self._parcel, self._arrays, self._mailbox, self._gpus)
            self._tasks[self._work.remote(task)] = place

    def listen(self, seconds: float) -> list[tuple[int, Said | Failed | Gone]]:
        """Wait until a worker says something, and return that."""
        import ray

        with uninterrupted():  # Ray would make another exception of an interruption
            ended, _ = ray.wait([*self._tasks], num_returns=len(self._tasks), timeout=0)
            letters = ray.get(self._mailbox.take.remote(0 if ended else seconds))
            ends = [(self._tasks.pop(task), _last_word(task)) for task in ended]
        return [(place, pickle.loads(words)) for place, words in letters] + ends  # noqa: S301  # our own workers'

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


def import_ray(is_local: bool) -> Any:
    """Return the library, if asked for so that nothing it starts is reached from other machines.

    Raises UserError where it is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of that
    if is_local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # its only way to a loopback address
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--engine ray needs Ray, but it is not installed ({first_line(error)}); pip install "
            "-r requirements-ray.txt"
        ) from error
    return ray


def threads_for_each(cores: list[int], jobs: int) -> int:
    """Return how many threads each of `jobs` workers has, on machines of so many cores.

    Raises UserError for fewer cores than jobs.
    """
    if sum(cores) < jobs:
        raise UserError(
            f"--jobs must be at most the number of the cluster's cores, {sum(cores)}, on CPUs, but "
            f"got {jobs}; use fewer"
        )
    fitting = (n for n in range(max(cores), 0, -1) if sum(c // n for c in cores) >= jobs)
    return next(fitting)


def share_for_each(gpus: list[int], jobs: int, wanted: float | None = None) -> float:
    """Return the part of a GPU that each of `jobs` workers has, on machines of so many GPUs: what
    is wanted, or the most that there is.

    Raises UserError where there is too little.
    """
    total = sum(gpus)
    at_once = math.floor(1 / wanted + 1e-9) if wanted else math.ceil(jobs / max(total, 1))
    if total * at_once < jobs:
        advice = f"use at most {total * at_once}, or a smaller --gpus-per-trial" if total else (
            "use --device cpu"
        )  # fmt: skip
        raise UserError(
            f"--jobs must have room on the cluster's GPUs, {total} with {at_once} trials each, but "
            f"got {jobs}; {advice}"
        )
    return wanted or math.floor(FINEST / at_once) / FINEST


def refuse_files(spec: WorkerSpec, nodes: list[Node]) -> None:
    """Raise UserError where workers on other machines would need this one's files."""
    local = [
        shown(url)
        for url in (spec.storage_url, spec.tracking_uri)
        if sqlite_path(url) or not url.startswith(("postgresql", "http"))
    ]
    if local and (others := _elsewhere(nodes)):
        raise UserError(
            "workers on several machines must share --storage of a PostgreSQL server and "
            f"--tracking-uri of an MLflow server, but {others[0]} cannot reach {local[0]}; give "
            "both, or leave out --ray-address"
        )


def _start() -> None:
    """Make a cluster of this machine that ends with this process, and that no other can reach."""
    import ray

    ray.init(
        address="local",
        num_cpus=usable_cores(),
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _join(address: str) -> None:
    """Connect to a cluster, to which our code is sent.

    Raises UserError where it does not let us in.
    """
    import ray

    code = [str(PROGRAM / name) for name in ("experiments", "speaker")]
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"py_modules": code, "excludes": ["__pycache__"]},
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            "--ray-address must be HOST:PORT of a Ray cluster that this machine belongs to, or "
            f"auto, but {address!r} cannot be used ({first_line(error)}); see ray status, or leave "
            "it out for a cluster of this machine"
        ) from error


@contextlib.contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Take the signals back that Ray takes while it starts: it would end the process within
    seconds.
    """
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    try:
        yield
    except SystemExit as stop:
        raise Interrupted(signal.SIGTERM) from stop
    finally:
        for signum, handler in before.items():
            if handler is not None:
                signal.signal(signum, handler)


def _nodes() -> list[Node]:
    import ray

    return [
        Node(
            node["NodeManagerAddress"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
            node["NodeManagerAddress"] == ray.util.get_node_ip_address(),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _elsewhere(nodes: list[Node]) -> list[str]:
    """Return the addresses of other machines."""
    return sorted({node.address for node in nodes if not node.is_here})


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
