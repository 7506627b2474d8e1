"""Run a command of this project and kill it, as `kill -9` does, just before one of its calls.

    python tests/kill_at.py CALL experiments promote --run ID

CALL is a method of MlflowClient, of its repository of files or of an Optuna study; `half` kills in the middle of an
upload.
"""

import os
import runpy
import signal
import sys
from typing import Any

import mlflow
import optuna
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

OWNERS = (LocalArtifactRepository, mlflow.MlflowClient, optuna.Study)


def die(*_arguments: Any, **_options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def upload_some_and_die(repository: Any, folder: str, path: str | None = None) -> None:
    repository.log_artifact(os.path.join(folder, "MLmodel"), path)
    die()


if __name__ == "__main__":
    _, call, module, *arguments = sys.argv
    if call == "half":
        LocalArtifactRepository.log_artifacts = upload_some_and_die
    else:
        setattr(next(each for each in OWNERS if hasattr(each, call)), call, die)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")
