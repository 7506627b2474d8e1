"""What the README shows runs as printed, in the README's order, in a folder that looks like a fresh checkout. What is
made shorter, and what does not run here and why, is said below; nothing else is left out.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import soundfile

from speaker.sources.demo import draw_voice, synthesize
from tests.helpers import ROOT, environment, write_corpus
from tests.servers import free_port
from tests.test_readme import BLOCKS, COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHORTER = {
    "--trials 50": "--trials 3 --steps 5",
    "--preset homework-edited": "--preset homework-edited --steps 5",
}
INSTALL = "python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt && "
NOT_HERE = {
    next(
        line for line in COMMANDS if line.endswith("pytest -n 3")
    ): "runs this test; CI runs it in a new environment",
    "python -m speaker download --out Dataset": "needs the internet, and the homework's archive",
    "python -m speaker prepare --audio vox2/dev/aac --out vox600 --speakers 600 --seed 0": "needs VoxCeleb2",
    "python search.py --data Dataset --storage postgresql+psycopg://USER@HOST/NAME --tracking-uri http://HOST:5000": "needs servers; tests of searches have their own",
    "python search.py --data Dataset --jobs 8 --engine ray --ray-address auto --gpus-per-trial 0.5": "needs a cluster with GPUs; tests of engines have a cluster of their own",
}
PYTHON = """
import ast, json, sys
from pathlib import Path
import mlflow, requests, torch
paths = sorted(Path("Dataset").glob("uttr-*.pt"))[:3]
answers = []
for node in ast.parse(sys.argv[1]).body:
    if isinstance(node, ast.Expr):
        answers.append(eval(compile(ast.Expression(node.value), "README", "eval")))
    else:
        exec(compile(ast.Module([node], []), "README", "exec"))
served, _, loaded = answers
served = served["predictions"]
assert len(set(map(len, mels))) > 1, "they differ in length"
assert served["speaker"] == loaded["speaker"].tolist() and len(served["speaker"]) == 3
assert abs(torch.tensor(served["probability"]) - torch.from_numpy(loaded["probability"])).max() < 1e-6
print("same", sorted(served))
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the program's files and some recordings. A small corpus stands in for the homework's, and for the
    demo corpus, which takes a minute to make: CI makes it.
    """
    for name in ("search.py", "train_trial.py", "speaker", "experiments", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for folder in ("mlruns/demo", "Dataset"):
        write_corpus(tmp_path / folder, speakers=3, per_speaker=14, test=5, frames=(4, 9))
    for name in ("anna", "ben"):
        (tmp_path / "recordings" / name).mkdir(parents=True)
        for number in range(4):
            sound = synthesize(draw_voice(name), f"{name}{number}").numpy()
            soundfile.write(tmp_path / "recordings" / name / f"{number}.wav", sound, 16_000)
    return tmp_path


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody whose `python` and `mlflow` are those of this test."""
    tools = tmp_path_factory.mktemp("tools")
    for name, words in (("python", ""), ("mlflow", "-m mlflow ")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (tools / name).chmod(0o755)
    path = os.pathsep.join((str(tools), str(Path(sys.executable).parent), os.environ["PATH"]))
    kept = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    return {**kept, "PATH": path}


def shorter(text: str) -> str:
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


def finish(home: Path, shell: dict[str, str], line: str) -> None:
    done = subprocess.run(
        ["bash", "-c", line], cwd=home, env=shell, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])


@contextlib.contextmanager
def staying(home: Path, shell: dict[str, str], text: str, health: str) -> Iterator[None]:
    """Run what stays until Ctrl-C, until a server says that it is well, and then until the end of a `with` block."""
    with subprocess.Popen(
        ["bash", "-c", text], cwd=home, env=shell, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            while True:
                assert process.poll() is None, f"{text} ended"
                with contextlib.suppress(requests.RequestException):
                    if requests.get(health, timeout=10).ok:
                        break
                time.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def test_each_reason_is_of_a_line_that_is_printed() -> None:
    assert NOT_HERE.keys() <= set(COMMANDS)
    assert all(any(long in line for line in COMMANDS) for long in SHORTER)
    assert COMMANDS[0].startswith(INSTALL), "CI installs in a new environment"


def test_the_readme_runs_as_printed(home: Path, shell: dict[str, str]) -> None:
    ran = 0
    for kind, block in BLOCKS:
        port = free_port()
        lines = [line for line in block.splitlines() if line not in NOT_HERE]
        if kind == "sh" and "mlflow models serve" in block:
            (python,) = (text for other, text in BLOCKS if other == "python")
            serve = block.replace("--port 5001", f"--port {port}")
            with staying(home, shell, serve, f"http://127.0.0.1:{port}/ping"):
                done = subprocess.run(
                    [sys.executable, "-c", PYTHON, python.replace(":5001/", f":{port}/")],
                    cwd=home, env=shell, capture_output=True, text=True, check=False,
                )  # fmt: skip
            assert done.stdout == "same ['probabilities', 'probability', 'speaker']\n", done.stderr
            ran += len(lines)
        elif kind == "sh":
            for line in lines:
                if line == "python -m experiments ui":
                    with staying(
                        home, shell, f"{line} --port {port}", f"http://127.0.0.1:{port}/health"
                    ):
                        pass
                else:
                    finish(home, shell, shorter(line.removeprefix(INSTALL)))
                ran += 1
    assert ran + len(NOT_HERE) == len(COMMANDS)
    assert not list(home.glob("*.db")), "no stray database"
    assert {"submission.csv", "submission.csv.parquet", "voted.csv"} <= {
        path.name for path in home.iterdir()
    }
    note = json.loads((home / "submission.csv.json").read_text())
    assert note["models"][0]["version"] == "1"
    assert re.search("uttr-", (home / "corpus" / "metadata.json").read_text())
