"""Commands of this project in processes that are forked from one with the libraries imported.

They do what new interpreters do, less the seconds that these spend on importing PyTorch and MLflow.
What depends on a new interpreter (a first start, a kill, worker processes) uses `helpers.run`.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.helpers import ROOT, environment

# Importing this module imports the program's libraries, through the helpers.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        __name__, "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "pyarrow", "scipy.stats",
        "experiments.confirm", "experiments.report.page", "experiments.upkeep.retention",
        "optuna.storages._rdb.storage", "matplotlib.backends.backend_svg", "torch._dynamo",
    ]
)  # fmt: skip
TIMEOUT_S = 600
# Variables that the program sets when it imports MLflow.
MADE_BY_IMPORTS = (
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
)


@dataclass
class Started:
    """A command that runs in a forked process, and the folder of what it has said."""

    command: list[str]
    process: BaseProcess
    said: "tempfile.TemporaryDirectory[str]"

    def wait(self, timeout: float = TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
        """Wait for its end; one that takes longer than `timeout` seconds is killed."""
        self.process.join(timeout)
        with self.said as place:
            if self.process.is_alive():
                self.process.kill()
                raise subprocess.TimeoutExpired(self.command, timeout)
            output, errors = (Path(place, name).read_text() for name in ("stdout", "stderr"))
        assert self.process.exitcode is not None
        return subprocess.CompletedProcess(self.command, self.process.exitcode, output, errors)


def run_warm(folder: Path, *words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of this project in a folder to its end.

    `words` are a script's path from the project's root, or `speaker` or `experiments`, and what
    follows it on the command line; `variables` are of the environment.
    """
    return start_warm(folder, words, variables).wait()


def start_warm(
    folder: Path,
    words: Iterable[object],
    variables: Mapping[str, str],
    before: Callable[[], object] = bool,
) -> Started:
    """Start such a command; `before` is called in its process first, and must be importable."""
    command, said = [str(word) for word in words], tempfile.TemporaryDirectory()
    process = FORKS.Process(target=_become, args=(folder, command, variables, said.name, before))
    process.start()
    return Started(command, process, said)


def _become(
    folder: Path,
    command: list[str],
    variables: Mapping[str, str],
    place: str,
    before: Callable[[], object],
) -> None:
    """Run a command as a new process would: its folder, environment, streams and arguments."""
    os.chdir(folder)
    made = {name: os.environ[name] for name in MADE_BY_IMPORTS}
    os.environ.clear()
    os.environ.update({**made, **environment(), **variables})
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = os.open(Path(place, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, descriptor)
    before()
    sys.argv = command
    if command[0].endswith(".py"):
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    else:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
