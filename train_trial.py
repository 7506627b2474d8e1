"""Train one given point, tracked exactly like a trial of a study.

`python train_trial.py --help` lists the flags.
"""

import argparse
import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speaker.common.cli import (
    Parser,
    add_device,
    add_precision,
    add_store_patience,
    add_tracking_uri,
    plain_name,
    run_cli,
)
from speaker.common.paths import STATE, next_commands
from speaker.common.signals import uninterrupted
from speaker.config import DEMO_BUDGET, HOMEWORK_BASELINE, PRESETS, TrialConfig

if TYPE_CHECKING:  # they bring torch and mlflow, which --help does without
    from experiments.context import TrainingContext
    from experiments.tracking.run import TrackedRun
    from experiments.tracking.store import TrackingStore
    from speaker.training.train import Report, TrialResult


def parser() -> Parser:
    """Return the command line: a flag for each field of TrialConfig, and what a search takes."""
    flags = Parser(
        prog="train_trial.py", description="Train one point, tracked like a trial, without a study."
    )
    flags.add_argument(
        "--preset", choices=tuple(PRESETS), help="start from one of the homework's points"
    )
    flags.add_argument(
        "--data", type=Path, metavar="FOLDER", help="corpus; without one, the built-in demo corpus"
    )
    add_device(flags)
    add_precision(flags)
    flags.add_argument(
        "--resume",
        type=plain_name,
        metavar="RUN",
        help="resume a run that was stopped, to the same end",
    )
    add_tracking_uri(flags)
    add_store_patience(flags)
    point = flags.add_argument_group(
        "the point", "fields of TrialConfig; where not given, the preset's or the homework's"
    )
    for field in dataclasses.fields(TrialConfig):
        name = "--" + field.name.replace("_", "-")
        kind = type(field.default)
        if kind is bool:
            point.add_argument(name, action=argparse.BooleanOptionalAction, default=None)
        else:
            point.add_argument(
                name, type=kind, metavar=kind.__name__.upper(), help=f"homework: {field.default}"
            )
    return flags


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the point that were given as flags."""
    fields = {
        field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrialConfig)
    }
    return {name: value for name, value in fields.items() if value is not None}


def chosen_point(arguments: argparse.Namespace) -> TrialConfig:
    """Return the point that the flags ask for. Raises UserError when it breaks a rule."""
    given = given_fields(arguments)
    base = HOMEWORK_BASELINE if arguments.data else DEMO_BUDGET
    if arguments.preset:
        preset = PRESETS[arguments.preset]
        searched = ("d_model", "nhead", "num_layers", "activation")
        base = base.replace(**{name: getattr(preset, name) for name in searched})
    if "steps" in given:
        base = base.with_steps(given.pop("steps"))
    return base.replace(**given)


def main() -> None:
    """Train the point and say what the homework's notebook says."""
    arguments = parser().parse_args()
    config = chosen_point(arguments)
    # Late: torch and mlflow take seconds to import, and --help needs neither.
    from experiments.context import load_context, move_to_device
    from experiments.tracked_training import explaining_failures
    from experiments.tracking.access import describe_places
    from experiments.tracking.store import TrackingStore, default_tracking_uri
    from speaker.training.lookahead import describe
    from speaker.training.metrics import format_accuracy
    from speaker.training.outcome import Outcome

    context = load_context(arguments.data, arguments.device, arguments.precision, STATE)
    config = context.fit_batch(config, arguments.batch_size)
    context, costs = move_to_device(context, [config])
    store = TrackingStore(arguments.tracking_uri or default_tracking_uri(STATE))
    print(describe_places(store.uri, store.decided_by))
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            explaining_failures("run it again; a run that has begun is resumed with --resume")
        )
        run = open_run(arguments, config, context, store, stack)
        resume = resuming_command(run.run_id)
        stack.enter_context(explaining_failures(f"resume with: {resume}"))
        print(f"Run {run.run_id}. If it is stopped, resume it with: {resume}")
        print(
            f"On {context.provenance['device']}. {describe([config], costs, 1, context.compute)}",
            flush=True,
        )
        result = train_tracked(config, context, run, arguments.store_patience)
    whole, crops = map(format_accuracy, result.scores())
    reason = f" ({result.reason})" if result.reason else ""
    print(
        f"{result.outcome}: whole {whole}, crops {crops}, {result.parameters:,} parameters, "
        f"{result.seconds:.1f} s{reason}"
    )
    if result.fallback:
        print(f"warning: no step was captured as a graph: {result.fallback}", file=sys.stderr)
    if result.outcome != Outcome.COMPLETE:
        sys.exit(1)
    print(f"Run {run.run_id}. Next:\n{next_commands(f'experiments promote --run {run.run_id}')}")


def open_run(
    arguments: argparse.Namespace,
    config: TrialConfig,
    context: "TrainingContext",
    store: "TrackingStore",
    stack: contextlib.ExitStack,
) -> "TrackedRun":
    """Open a new run, or the one to resume, and keep other processes from it
    until the stack is closed.
    """
    if arguments.resume:
        stack.enter_context(only_process(arguments.resume))
        # Both refuse what cannot be resumed before anything is written.
        store.validate_resumable(arguments.resume, config, context)
        found = context.checkpoint(arguments.resume, config).load()
        run = store.open_run(config.label(), {}, run_id=arguments.resume)
        if not found:
            print("It has no checkpoint yet, so it starts over.")
        return run
    is_preset = arguments.preset and not given_fields(arguments).keys() - {"steps", "seed"}
    run = store.open_run(config.label(), {"preset": arguments.preset} if is_preset else {})
    stack.enter_context(only_process(run.run_id))
    return run


def train_tracked(
    config: TrialConfig, context: "TrainingContext", run: "TrackedRun", store_patience: float
) -> "TrialResult":
    """Train the point, tracked as a trial of a study is."""
    from tqdm import tqdm

    from experiments.outages import Patience
    from experiments.tracked_training import TrackedTraining
    from experiments.tracking.run import STORE_ERRORS

    patience = Patience(store_patience, STORE_ERRORS)
    training = TrackedTraining(config, context, run, tell=lambda _result: None, patience=patience)
    bar = tqdm(total=config.steps, desc=config.label(), unit="step", disable=None)
    with bar, uninterrupted():
        return training.train(homework_lines(), bar)


def homework_lines() -> "Report":
    """Return what hears of each evaluation and says what the homework's notebook says."""
    from tqdm import tqdm

    from speaker.training import metrics as names

    best = -1.0

    def report(step: int, metrics: dict[str, float]) -> bool:
        nonlocal best
        tqdm.write(
            f"Train  {metrics[names.STEPS_PER_S]:6.1f} step/s   "
            f"accuracy={metrics[names.TRAIN_ACCURACY]:.2f}, loss={metrics[names.TRAIN_LOSS]:.2f}, "
            f"step={step}\nValid  {metrics[names.UTTERANCES_PER_S]:6.0f} uttr/s   "
            f"accuracy={metrics[names.ACCURACY_WHOLE]:.2f}, loss={metrics[names.LOSS_WHOLE]:.2f}, "
            f"by crops {metrics[names.ACCURACY_CROPS]:.2f}"
        )
        if metrics[names.OBJECTIVE] > best:
            best = metrics[names.OBJECTIVE]
            tqdm.write(f"Step {step}, best model saved. (accuracy={best:.4f})")
        return False

    return report


@contextlib.contextmanager
def only_process(run_id: str) -> Iterator[None]:
    """Keep a second process from going on with a run that this one trains.

    Raises UserError when one does already.
    """
    from experiments.study.locks import FileLocks
    from speaker.common.errors import UserError

    lock = FileLocks(STATE / "locks" / "runs").try_take(run_id)
    if lock is None:
        raise UserError(
            f"--resume must name a run that no process trains, but one trains {run_id}; let it end"
        )
    try:
        yield
    finally:
        lock.release()


def resuming_command(run_id: str) -> str:
    """Return the command that resumes a run."""
    words = (
        ["python", *sys.argv]
        if "--resume" in sys.argv
        else ["python", *sys.argv, "--resume", run_id]
    )
    return shlex.join(words)


if __name__ == "__main__":
    run_cli(main)
