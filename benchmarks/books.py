"""How long it takes to read a study back: its leaderboard and its page, and how both grow.

`python -m benchmarks.books` writes studies of 100 and 1,000 invented trials through the code that
a search writes with, into an SQLite store of their own in a temporary folder, and then times, after
all imports, what `python -m experiments compare` and `report` do with each.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from experiments.analysis.answer import describe_answer
from experiments.analysis.leaderboard import ranked
from experiments.analysis.table import table
from experiments.context import TrainingContext, load_context
from experiments.report.publish import make_report
from experiments.study.trial import run_name
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from speaker.common.devices import find_compute
from speaker.common.provenance import provenance
from speaker.config import HOMEWORK_BASELINE, TrialConfig
from speaker.training.metrics import (
    ACCURACY_CROPS,
    ACCURACY_WHOLE,
    CROPS_PER_S,
    LOSS_WHOLE,
    TRAIN_LOSS,
    UTTERANCES_PER_S,
    Metrics,
    hex_of,
)
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult

UTTERANCES = 5_667  # of the homework's validation part
EVALUATIONS = 5
WEIGHTS = {"head.weight": torch.zeros(8, 8)}  # what a run keeps of them does not matter here
ENDS = 6 * [Outcome.COMPLETE] + 3 * [Outcome.PRUNED] + [Outcome.COLLAPSED]


def draw_point(draw: random.Random, number: int) -> TrialConfig:
    """Return a point of a space like the training space."""
    return HOMEWORK_BASELINE.replace(
        d_model=draw.choice((80, 128, 256, 512)),
        nhead=draw.choice((1, 2, 4, 8, 16)),
        num_layers=draw.randint(1, 6),
        activation=draw.choice(("sigmoid", "relu", "gelu")),
        lr=10 ** draw.uniform(-4, -2.5),
        dropout=draw.choice((0.0, 0.1, 0.2)),
        seed=number,
    )


def train_nothing(config: TrialConfig, outcome: Outcome, draw: random.Random) -> list[Metrics]:
    """Return the evaluations of an invented training: better with more layers, noisy."""
    end = 0.35 + 0.05 * config.num_layers + 0.1 * (config.d_model > 100) + draw.gauss(0, 0.03)
    count = {Outcome.COMPLETE: EVALUATIONS, Outcome.PRUNED: draw.choice((1, 3))}.get(outcome, 1)
    rows = []
    for number in range(1, count + 1):
        accuracy = round(UTTERANCES * min(0.99, end * number / EVALUATIONS)) / UTTERANCES
        rows.append(
            {
                ACCURACY_WHOLE: accuracy,
                ACCURACY_CROPS: 0.8 * accuracy,
                LOSS_WHOLE: 3.0 - accuracy,
                TRAIN_LOSS: 3.0 - accuracy,
                UTTERANCES_PER_S: draw.uniform(500, 2000),
                CROPS_PER_S: draw.uniform(500, 2000),
            }
        )
    return rows


def write_study(store: TrackingStore, context: TrainingContext, name: str, trials: int) -> None:
    """Write a study of invented trials, as a search does but for the training."""
    draw = random.Random(0)  # noqa: S311  # no secret
    parent = store.open_study(name, name, None, {"seed": "0"}, {"sampler": "none"}, context)
    hard = torch.rand(UTTERANCES, generator=torch.Generator().manual_seed(0))
    for number in range(trials):
        outcome, config = draw.choice(ENDS), draw_point(draw, number)
        tags = {names.STUDY: name, names.TRIAL: str(number)}
        run = store.open_run(run_name(number, config), tags, parent)
        run.log_setup(config, context)
        rows = train_nothing(config, outcome, draw)
        every = config.steps // EVALUATIONS
        for count, metrics in enumerate(rows, start=1):
            run.log(count * every, metrics)
        # Utterances are hard for all models alike, and a little more for each.
        noise = torch.rand(UTTERANCES, generator=torch.Generator().manual_seed(1 + number))
        harder = (hard + 0.5 * noise).argsort().argsort()
        hits = hex_of(harder < round(UTTERANCES * rows[-1][ACCURACY_WHOLE]))
        result = TrialResult(
            outcome,
            steps=len(rows) * every,
            best_step=len(rows) * every,
            best=rows[-1],
            weights=WEIGHTS,
            hits=hits,
            parameters=1_000 * config.num_layers,
            seconds=draw.uniform(10, 100),
        )
        run.log_result(result, config, context)
        run.close(outcome)


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def processor_seconds(call: Callable[[], object]) -> float:
    """Return how long a call computes: others that use the machine do not matter."""
    began = time.process_time()
    call()
    return time.process_time() - began


def main() -> None:
    """Write, measure, print and optionally keep."""
    flags = argparse.ArgumentParser(description="How long a study takes to read back.")
    flags.add_argument("--trials", type=int, nargs="+", default=[100, 1_000], metavar="N")
    flags.add_argument("--out", type=Path, metavar="FILE", help="JSON to keep the results in")
    arguments = flags.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        context = load_context(None, "cpu", "fp32", state)
        store = TrackingStore(f"sqlite:///{state}/mlflow.db")
        for trials in arguments.trials:
            name = f"invented-{trials}"
            written = timed(lambda: write_study(store, context, name, trials))  # noqa: B023
            row = {
                "trials": trials,
                "milliseconds to write a trial": 1000 * written / trials,
                "seconds of compare": timed(lambda: compare(store, name)),  # noqa: B023
                "processor seconds of it": processor_seconds(lambda: compare(store, name)),  # noqa: B023
                "seconds of report": timed(lambda: make_report(store, name)),  # noqa: B023
            }
            measured.append(row)
            print("  ".join(f"{key} {value:,.2f}" for key, value in row.items()), flush=True)
    if arguments.out:
        about = {"origin": provenance(find_compute("cpu", "fp32"))}
        arguments.out.write_text(json.dumps({"measured": measured, **about}, indent=2) + "\n")


def compare(store: TrackingStore, name: str) -> str:
    """Return what `python -m experiments compare --study NAME` prints."""
    rows = ranked(store, name)
    return f"{table(rows, 10)}\n\n{describe_answer(rows)}"


if __name__ == "__main__":
    main()
