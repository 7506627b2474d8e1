"""Real searches on a corpus, ours and plain Optuna's with its MLflow callback, in turn.

`python -m benchmarks.search.live --data FOLDER --unseen FOLDER --out FILE` runs whole programs, and
goes on where it was killed. The folders are the two that table.py makes of a corpus. What an answer
is worth is the accuracy of its point, trained again on fresh seeds, on the validation part and all
that no search has seen.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.search.table import CORPUS_BUDGET, Task, run
from experiments.analysis.leaderboard import ranked
from experiments.proposals.space import HOMEWORK
from experiments.tracking.store import TrackingStore
from speaker.common.devices import Compute, find_precision
from speaker.common.provenance import provenance
from speaker.config import TrialConfig
from speaker.training.metrics import hits_of

ROOT = Path(__file__).resolve().parents[2]
FRESH = range(1000, 1003)  # seeds that no search uses


@dataclass(frozen=True)
class Answer:
    """What a search found."""

    point: dict[str, Any]
    shown: float  # the accuracy that it reports
    seconds: float  # of wall time, of the whole program
    steps: int


def ours(data: Path, home: Path, trials: int, base: TrialConfig, seed: int) -> Answer:
    """Run search.py in a folder."""
    budget = ("--steps", base.steps, "--fix", f"segment_len={base.segment_len}")
    words = ("--data", data, "--trials", trials, "--seed", seed, "--study", "live", *budget)
    said, seconds = _timed(home, ROOT / "search.py", *words)
    best = ranked(TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db"), "live")[0]
    steps = re.search(r"^Trained ([\d,]+)", said, re.MULTILINE)
    assert steps
    assert best.expected
    return Answer(
        {name: best.values[name] for name in HOMEWORK.definition()},
        best.expected.mean,
        seconds,
        int(steps[1].replace(",", "")),
    )


def plain(data: Path, home: Path, trials: int, base: TrialConfig, seed: int) -> Answer:
    """Run plain.py in a folder."""
    words = (data, "--trials", trials, "--steps", base.steps, "--seed", seed)
    said, seconds = _timed(home, "-m", "benchmarks.search.plain", *words)
    point = json.loads(said.splitlines()[-1])
    return Answer(point, point.pop("accuracy"), seconds, trials * base.steps)


def worth(answer: Answer, base: TrialConfig, data: Path, unseen: Path, state: Path) -> list[float]:
    """Return the accuracies of an answer's point on fresh seeds, in [0, 1]."""
    accuracies = []
    for seed in FRESH:
        config = base.replace(**answer.point, seed=seed)
        hits = hits_of(run(Task(config, data, unseen, state, "auto"))["hits"][-1][1])
        accuracies.append(statistics.mean(hits))
    return accuracies


def _timed(home: Path, *words: object) -> tuple[str, float]:
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    # MLflow sets the address of the store that it read last, which is that of another search.
    variables = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=home,
        env={**variables, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, time.perf_counter() - begun


def main() -> None:
    """Search in turn, and print a line for each search."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--data", type=Path, required=True)
    flags.add_argument("--unseen", type=Path, required=True)
    flags.add_argument("--trials", type=int, default=20)
    flags.add_argument("--steps", type=int, default=80, help="of each training")
    flags.add_argument("--searches", type=int, default=3, help="of each kind")
    flags.add_argument("--out", type=Path, required=True)
    arguments = flags.parse_args()
    data, unseen = arguments.data.resolve(), arguments.unseen.resolve()
    compute = Compute(precision=find_precision("auto", torch.device("cpu")))
    base = CORPUS_BUDGET.with_steps(arguments.steps)
    found: list[dict[str, Any]] = []
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text())["searches"]
    done = {(each["search"], each["seed"]) for each in found}
    for seed in range(arguments.searches):
        for search in (ours, plain):
            if (search.__name__, seed) in done:
                continue
            with tempfile.TemporaryDirectory() as home:
                answer = search(data, Path(home), arguments.trials, base, seed)
                fresh = worth(answer, base, data, unseen, Path(home))
            found.append(
                {"search": search.__name__, "seed": seed, **asdict(answer), "fresh": fresh}
            )
            print(json.dumps(found[-1]), flush=True)
            written = {
                "trials": arguments.trials,
                "steps": base.steps,
                "origin": provenance(compute),
                "searches": found,
            }
            arguments.out.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
