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
from pathlib import Path

from tests.helpers import ROOT, environment

# Importing this module imports the program's libraries, through the helpers.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "mlflow.pyfunc", "pyarrow", "scipy.stats"])
TIMEOUT_S = 600
# Variables that the program sets when it imports MLflow.
MADE_BY_IMPORTS = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")


def run_warm(folder: Path, *words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of this project in a folder to its end.

    `words` are a script's path from the project's root, or `speaker` or `experiments`, and what
    follows it on the command line; `variables` are of the environment.
    """
    command = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as place:
        process = FORKS.Process(target=_become, args=(folder, command, variables, place))
        process.start()
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(command, TIMEOUT_S)
        said = [Path(place, name).read_text() for name in ("stdout", "stderr")]
    assert process.exitcode is not None
    return subprocess.CompletedProcess(command, process.exitcode, *said)


def _become(folder: Path, command: list[str], variables: dict[str, str], place: str) -> None:
    """Run a command as a new process would: its folder, environment, streams and arguments."""
    os.chdir(folder)
    made = {name: os.environ[name] for name in MADE_BY_IMPORTS}
    os.environ.clear()
    os.environ.update({**made, **environment(), **variables})
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = os.open(Path(place, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(stream, descriptor)
    sys.argv = command
    if command[0].endswith(".py"):
        runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    else:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
