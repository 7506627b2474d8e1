"""The scripts for SLURM and Kubernetes: what they start is what this program takes, and it survives
the signals that they send.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import search
from speaker.training.checkpoint import _read
from tests.helpers import ROOT, environment

# As SLURM preempts a step: SIGCONT and SIGTERM to all of its processes, and SIGKILL a while later.
SRUN = f"""#!{sys.executable}
import os, pathlib, signal, subprocess, sys, time
step = subprocess.Popen(sys.argv[1:], start_new_session=True)
known = os.environ["KNOWN"]
while step.poll() is None:
    files = list(pathlib.Path("mlruns/checkpoints").glob("*.checkpoint"))
    if files and str(files[0].stat().st_mtime_ns) != known:
        os.killpg(step.pid, signal.SIGCONT)
        os.killpg(step.pid, signal.SIGTERM)
        try:
            step.wait(int(os.environ["KILL_WAIT"]))
        except subprocess.TimeoutExpired:
            os.killpg(step.pid, signal.SIGKILL)
    time.sleep(0.05)
sys.exit(step.wait() if step.returncode >= 0 else 128 - step.returncode)
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*"
"""
KILL_WAIT_S = 60  # ten on a quiet machine: see benchmarks; here others compute, too


def preempt(home: Path, known: int) -> "subprocess.CompletedProcess[str]":
    """Run the job script, and preempt it when there is a checkpoint of another time."""
    return subprocess.run(
        ["bash", str(ROOT / "cluster" / "slurm.sh")],
        cwd=home,
        env=environment()
        | {
            "PATH": f"{home}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OPTUNA_STORAGE": f"sqlite:///{home}/optuna.db",
            "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
            "CORPUS": "corpus",
            "TRIALS": "1",
            "SLURM_JOB_ID": "17",
            "KNOWN": str(known),
            "KILL_WAIT": str(KILL_WAIT_S),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_job_that_slurm_preempts_is_put_back_and_goes_on(home: Path) -> None:
    (home / "search.py").symlink_to(ROOT / "search.py")
    (home / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755)
    steps, known = [0], 0
    for _ in range(2):
        done = preempt(home, known)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "scontrol requeue 17"
        assert "Stopped by SIGTERM." in done.stderr
        assert "Traceback" not in done.stderr
        (file,) = (home / "mlruns" / "checkpoints").glob("*.checkpoint")
        known = file.stat().st_mtime_ns
        steps.append(_read(file, None)[0].state.step)
    assert steps == sorted(set(steps)), "each time it goes on from where it was"


def test_what_kubernetes_starts_is_what_the_search_takes() -> None:
    job = yaml.safe_load((ROOT / "cluster" / "kubernetes.yaml").read_text())["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    program, script, *words = container["command"]
    assert (program, script) == ("python", "search.py")
    arguments = search.parser().parse_args(words)
    assert (arguments.trials, arguments.study) == (500, "homework")
    assert job["parallelism"] == job["completions"] > 1
    assert pod["restartPolicy"] == "OnFailure"
    assert pod["terminationGracePeriodSeconds"] >= 3 * 10
    assert str(arguments.data).startswith(container["volumeMounts"][0]["mountPath"])


def test_the_job_script_starts_what_the_search_takes() -> None:
    script = (ROOT / "cluster" / "slurm.sh").read_text()
    (line,) = (line for line in script.splitlines() if line.startswith("srun "))
    words = line.replace('"${CORPUS:-/shared/Dataset}"', "c").replace('"${TRIALS:-500}"', "5")
    assert search.parser().parse_args(words.split()[3:]).trials == 5
    assert len(script.splitlines()) <= 10
