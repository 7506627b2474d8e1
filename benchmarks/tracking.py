"""What it costs to track a training: this project's way, a loop that calls MLflow for each number,
and Optuna's MLflow callback.

`python -m benchmarks.tracking` logs the same invented training, again and again and in turn, with
each of them into an SQLite store of its own: the point, 35 evaluations of nine numbers, and the
weights of the homework's second point. The callback logs neither evaluations nor weights; it takes
part where `pip install --no-deps optuna-integration==5.0.0` has put it. A trial that trains for a
minute is what a share is of.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import create_trial

from benchmarks.books import train_nothing
from experiments.context import TrainingContext, load_context
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from speaker.common.devices import find_compute
from speaker.common.provenance import provenance
from speaker.config import HOMEWORK_EDITED
from speaker.model.classifier import SpeakerClassifier, count_parameters
from speaker.training.metrics import LEARNING_RATE, STEPS_PER_S, TRAIN_ACCURACY, Metrics, hex_of
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult

EVALUATIONS = 35  # of the homework's 70,000 steps: one each 2,000
TRIAL_S = 60.0  # of training
POINT = HOMEWORK_EDITED

Track = Callable[[int], None]  # logs a trial, by its number


def invent(context: TrainingContext) -> tuple[list[Metrics], TrialResult]:
    """Return the evaluations and the end of a training that never was."""
    draw = random.Random(0)  # noqa: S311  # no secret
    (row, *_) = train_nothing(POINT, Outcome.COMPLETE, draw)
    row |= {TRAIN_ACCURACY: 0.5, LEARNING_RATE: 1e-3, STEPS_PER_S: 20.0}
    model = SpeakerClassifier(POINT, context.pack.n_mels, len(context.pack.speakers))
    _, valid = context.protocol.split(context.pack)
    labels = context.pack.labels[valid]
    result = TrialResult(
        Outcome.COMPLETE,
        steps=POINT.steps,
        best_step=POINT.steps,
        best=row,
        weights=model.state_dict(),
        hits=hex_of(labels == labels.roll(1)),
        told=labels.roll(1).tolist(),
        parameters=count_parameters(model),
        seconds=TRIAL_S,
    )
    return [row] * EVALUATIONS, result


def ours(store: TrackingStore, context: TrainingContext) -> Track:
    """Return what a search of this project does around a training."""
    rows, result = invent(context)
    parent = store.open_study("s", "s", None, {}, {}, context)

    def track(number: int) -> None:
        run = store.open_run(f"#{number}", {names.STUDY: "s", names.TRIAL: str(number)}, parent)
        run.log_setup(POINT, context)
        for count, metrics in enumerate(rows, start=1):
            run.log(count * POINT.steps // EVALUATIONS, metrics)
        run.log_result(result, POINT, context)
        run.close(result.outcome)

    return track


def loop(uri: str, context: TrainingContext) -> Track:
    """Return what MLflow's quick start does: a call for each number."""
    rows, result = invent(context)
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("loop")

    def track(number: int) -> None:
        with mlflow.start_run(run_name=f"#{number}"), tempfile.TemporaryDirectory() as folder:
            for name, field in POINT.to_dict().items():
                mlflow.log_param(name, field)
            for count, metrics in enumerate(rows, start=1):
                for name, value in metrics.items():
                    mlflow.log_metric(name, value, step=count * POINT.steps // EVALUATIONS)
            torch.save(result.weights, f"{folder}/model.pt")
            mlflow.log_artifact(f"{folder}/model.pt")

    return track


def callback(uri: str) -> Track | None:
    """Return what Optuna's callback does at the end of a trial; None where it is not installed."""
    try:
        from optuna_integration.mlflow import MLflowCallback
    except ImportError:
        return None
    logs = MLflowCallback(tracking_uri=uri, metric_name="accuracy")
    study = optuna.create_study(study_name="callback")

    def track(number: int) -> None:
        point = POINT.to_dict()
        space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution([value]) for name, value in point.items()
        }
        study.add_trial(create_trial(value=0.5, params=point, distributions=space))
        logs(study, study.trials[number])

    return track


def main() -> None:
    """Log in turn, print the medians, and optionally keep them."""
    flags = argparse.ArgumentParser(description="What it costs to track a training.")
    flags.add_argument("--trials", type=int, default=20, metavar="N", help="of each way")
    flags.add_argument("--out", type=Path, metavar="FILE", help="JSON to keep the results in")
    arguments = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        context = load_context(None, "cpu", "fp32", state)
        ways: dict[str, Track | None] = {
            "ours": ours(TrackingStore(f"sqlite:///{state}/ours.db"), context),
            "loop": loop(f"sqlite:///{state}/loop.db", context),
            "callback": callback(f"sqlite:///{state}/callback.db"),
        }
        taken: dict[str, list[float]] = {name: [] for name, track in ways.items() if track}
        for number in range(arguments.trials):
            for name, track in ways.items():
                if track:
                    began = time.perf_counter()
                    track(number)
                    taken[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    for name, seconds in medians.items():
        print(
            f"{name:9} {seconds:.3f} s a trial, {100 * seconds / TRIAL_S:.2f} % of a minute, "
            f"{seconds / medians['ours']:.2f} times ours"
        )
    if arguments.out:
        about = {"trial_s": TRIAL_S, "evaluations": EVALUATIONS, "seconds": taken}
        origin = provenance(find_compute("cpu", "fp32"))
        arguments.out.write_text(json.dumps({**about, "origin": origin}, indent=1) + "\n")


if __name__ == "__main__":
    main()
