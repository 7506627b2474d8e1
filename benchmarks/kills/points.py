"""Where a search can be killed: before and after each of its writes, by name, from outside."""

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import pkgutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from benchmarks.kills.plan import Gate, Plan

FOLDER = "KILLS_FOLDER"  # the variable that names a plan's folder
BEFORE, HALF, AFTER = "before", "half", "after"


def _place_of(path: object) -> str:
    """Return what a file of a search belongs to; nothing where it is none of those that last."""
    parts = Path(os.fsdecode(path)).parts if isinstance(path, str | bytes | Path) else ()
    if isinstance(path, int):
        parts = Path(os.readlink(f"/proc/self/fd/{path}")).parts
    below = parts[parts.index("mlruns") + 1 :] if "mlruns" in parts else ()
    known = {"checkpoints": "checkpoint", "packs": "pack", "artifacts": "artifact"}
    if below and below[0] in known:
        return known[below[0]]
    return "database" if below and ".db" in below[0] else ""


@dataclass(frozen=True)
class Write:
    """A call that writes, and the name of the points around it: one name, or one by what it
    writes to.
    """

    owner: str  # module:Class, or a module
    method: str
    name: str = ""  # if empty, it is named after the file that its first argument is

    def name_of(self, arguments: tuple[Any, ...]) -> str:
        """Return the name of the points around a call."""
        place = self.name or _place_of(arguments[0])
        return place if self.name or not place else f"{place}.{self.method}"

    def names(self) -> list[str]:
        """Return all names that its calls can have."""
        if self.name:
            return [self.name]
        kinds = ("checkpoint", "pack", "artifact", "database")
        return [f"{kind}.{self.method}" for kind in kinds]


STORAGE, CLIENT = "optuna.storages:RDBStorage", "mlflow:MlflowClient"
ARTIFACTS = "mlflow.store.artifact.local_artifact_repo:LocalArtifactRepository"
LOCKS = "experiments.study.locks"
WRITES = (
    *(
        Write(STORAGE, method, f"optuna.{method.strip('_')}")
        for method in (
            "create_new_study", "_create_new_trial", "set_study_system_attr", "set_study_user_attr",
            "set_trial_intermediate_value", "_set_trial_param", "set_trial_state_values",
            "set_trial_system_attr", "set_trial_user_attr",
        )
    ),
    *(
        Write(CLIENT, method, f"mlflow.{method}")
        for method in (
            "create_run", "log_artifacts", "log_batch", "log_inputs", "log_text",
            "set_experiment_tag", "set_tag", "set_terminated", "update_run",
        )
    ),
    Write(ARTIFACTS, "log_artifact", "artifact.log"),
    Write(ARTIFACTS, "delete_artifacts", "artifact.delete"),
    Write("shutil", "copyfile", "artifact.copy"),
    Write("sqlalchemy.engine.default:DefaultDialect", "do_commit", "sql.commit"),
    Write("speaker.training.checkpoint:Checkpoint", "save", "checkpoint.save"),
    Write("speaker.training.checkpoint:Checkpoint", "remove", "checkpoint.remove"),
    *(
        Write(f"{LOCKS}:{owner}", method, f"lock.{method}")
        for owner in ("FileLocks", "PostgresLocks")
        for method in ("take", "try_take", "share")
    ),
    Write(f"{LOCKS}:Lock", "release", "lock.release"),
    Write("sqlalchemy:Connection", "close", "connection.close"),
    Write("os", "fsync"),
    Write("os", "replace"),
    Write("os", "unlink"),
    Write("os", "mkdir"),
)  # fmt: skip


def _copy_half(source: str, target: str) -> None:
    data = Path(source).read_bytes()
    Path(target).write_bytes(data[: len(data) // 2])


def _delete_half(repository: Any, folder: str | None = None) -> None:
    files = [
        path for path in Path(repository.artifact_dir, folder or "").rglob("*") if path.is_file()
    ]
    for path in files[: len(files) // 2]:
        path.unlink()


# What a call has done when it is killed in its midst.
HALVES: dict[str, Callable[..., None]] = {
    "copyfile": _copy_half,
    "delete_artifacts": _delete_half,
}


def all_points() -> list[str]:
    """Return the names of all points."""
    found = {
        f"{name}.{side}"
        for write in WRITES
        for name in write.names()
        for side in (BEFORE, AFTER, *([HALF] if write.method in HALVES else []))
    }
    return sorted(found)


def plant() -> None:
    """Plant the points of the plan that FOLDER names into this process and those that it starts,
    and let it keep checkpoints as often as the plan says.
    """
    folder = Path(os.environ[FOLDER])
    gate, plan = Gate(folder), Plan.read(folder)
    tempfile.tempdir = None  # it is another one here
    for write in WRITES:
        if any(map(gate.awaits, write.names())):
            owner = pkgutil.resolve_name(write.owner)
            setattr(owner, write.method, _between(getattr(owner, write.method), write, gate))
    checkpoint = pkgutil.resolve_name("speaker.training.checkpoint")
    vars(checkpoint).update(MIN_INTERVAL_S=plan.interval, MAX_TIME_FRACTION=1e9)
    if plan.template:
        _begin_with(Path(plan.template))
    _share_server()


def plant_on_ray() -> None:
    """Plant them into this process, and into the workers that it will have on a Ray cluster."""
    plant()
    folder = os.environ[FOLDER]
    engine = pkgutil.resolve_name("experiments.engines.ray_cluster")
    work = vars(engine)["work_in_task"]

    def planted(task: Any) -> Any:
        os.environ[FOLDER] = folder
        plant()
        return work(task)

    vars(engine)["work_in_task"] = planted


def _between(call: Callable[..., Any], write: Write, gate: Gate) -> Callable[..., Any]:
    """Return a call that passes a point before and after what it does."""

    @functools.wraps(call)
    def called(*arguments: Any, **options: Any) -> Any:
        name = write.name_of(arguments)
        if not name:
            return call(*arguments, **options)
        gate.passing(f"{name}.{BEFORE}")
        if half := HALVES.get(write.method):
            gate.passing(f"{name}.{HALF}", lambda: half(*arguments))
        result = call(*arguments, **options)
        gate.passing(f"{name}.{AFTER}")
        return result

    return called


def _begin_with(template: Path) -> None:
    """Let new MLflow databases begin as copies of one: its migrations take seconds."""
    store = pkgutil.resolve_name("experiments.tracking.store")
    create = vars(store)["_create_store"]

    def copied(path: Path, artifacts: str) -> None:
        path.write_bytes(template.read_bytes())
        create(path, artifacts)

    vars(store)["_create_store"] = copied


class PlantedProcess(ForkServerProcess):
    """A worker process of a planted one: planted, too, and with its environment and streams."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._environment = dict(os.environ)
        self._streams = [os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)]

    def run(self) -> None:
        """Do what the process is for."""
        os.environ.update(self._environment)
        for number, path in enumerate(self._streams, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
        plant()
        super().run()


class PlantedContext(ForkServerContext):
    """Makes worker processes as `spawn` does, less the seconds of imports."""

    Process = PlantedProcess


def _share_server() -> None:
    """Let the processes that this one starts be forked by the server that it comes from."""
    server, others = multiprocessing.forkserver._forkserver, multiprocessing.get_context

    def get_context(method: str | None = None) -> Any:
        return PlantedContext() if method == "spawn" else others(method)

    vars(server)["ensure_running"] = lambda: None
    vars(multiprocessing)["get_context"] = get_context
