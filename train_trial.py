"""Train one given point, tracked exactly like a trial of a study. `python train_trial.py --help` lists the flags."""

import argparse
import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speaker.common.cli import Parser, plain_name, run_cli
from speaker.common.paths import STATE
from speaker.common.signals import interruptible, uninterrupted
from speaker.config import DEMO_BUDGET, HOMEWORK_BASELINE, PRESETS, TrialConfig

if TYPE_CHECKING:  # they bring torch and mlflow, which --help does without
    from experiments.tracking.store import TrackedRun
    from speaker.training.train import Report


def parser() -> Parser:
    """Return the command line: a flag for each field of TrialConfig, and what a search takes."""
    flags = Parser(prog="train_trial.py", description="Train one point, tracked like a trial, without a study.")
    flags.add_argument("--preset", choices=tuple(PRESETS), help="start from one of the homework's points")
    flags.add_argument("--data", type=Path, metavar="FOLDER", help="corpus; without one, the built-in demo corpus")
    flags.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    flags.add_argument(
        "--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="auto: the fastest there is"
    )
    flags.add_argument(
        "--resume", type=plain_name, metavar="RUN", help="go on with a run that was stopped, to the same end"
    )
    flags.add_argument(
        "--tracking-uri", metavar="URL", help="MLflow's store; else $MLFLOW_TRACKING_URI, else mlruns/mlflow.db"
    )
    point = flags.add_argument_group(
        "the point", "fields of TrialConfig; where not given, the preset's or the homework's"
    )
    for field in dataclasses.fields(TrialConfig):
        name = "--" + field.name.replace("_", "-")
        kind = type(field.default)
        if kind is bool:
            point.add_argument(name, action=argparse.BooleanOptionalAction, default=None)
        else:
            point.add_argument(name, type=kind, metavar=kind.__name__.upper(), help=f"homework: {field.default}")
    return flags


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the point that were given as flags."""
    fields = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrialConfig)}
    return {name: value for name, value in fields.items() if value is not None}


def chosen_point(arguments: argparse.Namespace) -> TrialConfig:
    """Return the point that the flags ask for. Raises UserError when it breaks a rule."""
    given = given_fields(arguments)
    base = HOMEWORK_BASELINE if arguments.data else DEMO_BUDGET
    if arguments.preset:
        preset = PRESETS[arguments.preset]
        base = base.replace(d_model=preset.d_model, nhead=preset.nhead, num_layers=preset.num_layers,
                            activation=preset.activation)  # fmt: skip
    if "steps" in given:
        base = base.with_steps(given.pop("steps"))
    return base.replace(**given)


def main() -> None:
    """Train the point and say what the homework's notebook says."""
    arguments = parser().parse_args()
    config = chosen_point(arguments)
    # Late: torch and mlflow take seconds to import, and --help needs neither.
    from tqdm import tqdm

    from experiments.context import load_context, move_to_device
    from experiments.tracking.store import TrackingStore, default_tracking_uri
    from speaker.training.lookahead import describe
    from speaker.training.train import train, validate_batch_size

    context = load_context(arguments.data, arguments.device, arguments.precision, STATE)
    validate_batch_size(config, context.pack, context.protocol)
    context, costs = move_to_device(context, [config])
    store = TrackingStore(arguments.tracking_uri or default_tracking_uri(STATE))
    with contextlib.ExitStack() as stack:
        if arguments.resume:
            stack.enter_context(only_process(arguments.resume))
            found = context.checkpoint(arguments.resume, config).load()  # refuses what it cannot go on from
            run = store.reopen_run(arguments.resume, config, context)
            if not found:
                print("It has no checkpoint yet, so it starts over.")
        else:
            is_preset = arguments.preset and not given_fields(arguments).keys() - {"steps", "seed"}
            run = store.open_run(config.label(), {"preset": arguments.preset} if is_preset else {})
            stack.enter_context(only_process(run.run_id))
        bar = stack.enter_context(tqdm(total=config.steps, desc=config.label(), unit="step", disable=None))
        print(f"Run {run.run_id}. Should it be stopped, go on with: {resuming_command(run.run_id)}")
        print(f"On {context.provenance['device']}. {describe([config], costs, 1, context.compute)}", flush=True)
        checkpoint = context.checkpoint(run.run_id, config)
        with uninterrupted(), run.guarded():
            run.log_setup(config, context)
            with interruptible():
                result = train(config, context.pack, context.protocol, reporter(run), context.compute, checkpoint, bar)
            run.log_result(result, config, context)
        run.close(result.outcome, result.reason)
        checkpoint.remove()
    whole, crops = (f"{value:.4f}" if value is not None else "-" for value in result.scores())
    print(f"{result.outcome}: whole {whole}, crops {crops}, {result.parameters:,} parameters, {result.seconds:.1f} s"
          + (f" ({result.reason})" if result.reason else ""))  # fmt: skip
    if result.fallback:
        print(f"warning: no step was captured as a graph: {result.fallback}", file=sys.stderr)
    if result.outcome != "complete":
        sys.exit(1)
    print(f"Run {run.run_id}; promote it with: python -m experiments promote --run {run.run_id}")


def reporter(run: "TrackedRun") -> "Report":
    """Return what hears of each evaluation: it logs it and says what the homework's notebook says."""
    from tqdm import tqdm

    from speaker.training.metrics import (
        ACCURACY_CROPS,
        ACCURACY_WHOLE,
        LOSS_WHOLE,
        OBJECTIVE,
        STEPS_PER_S,
        TRAIN_ACCURACY,
        TRAIN_LOSS,
        UTTERANCES_PER_S,
    )

    best = -1.0

    def report(step: int, metrics: dict[str, float]) -> bool:
        nonlocal best
        with uninterrupted():
            run.log(step, metrics)
        tqdm.write(
            f"Train  {metrics[STEPS_PER_S]:6.1f} step/s   accuracy={metrics[TRAIN_ACCURACY]:.2f}, "
            f"loss={metrics[TRAIN_LOSS]:.2f}, step={step}\n"
            f"Valid  {metrics[UTTERANCES_PER_S]:6.0f} uttr/s   accuracy={metrics[ACCURACY_WHOLE]:.2f}, "
            f"loss={metrics[LOSS_WHOLE]:.2f}, by crops {metrics[ACCURACY_CROPS]:.2f}"
        )
        if metrics[OBJECTIVE] > best:
            best = metrics[OBJECTIVE]
            tqdm.write(f"Step {step}, best model saved. (accuracy={best:.4f})")
        return False

    return report


@contextlib.contextmanager
def only_process(run_id: str) -> Iterator[None]:
    """Keep a second process from going on with a run that this one trains. Raises UserError when one does already."""
    from experiments.study.locks import FileLocks
    from speaker.common.errors import UserError

    release = FileLocks(STATE / "locks" / "runs").try_take(run_id)
    if release is None:
        raise UserError(f"--resume must name a run that no process trains, but one trains {run_id}; let it end")
    try:
        yield
    finally:
        release()


def resuming_command(run_id: str) -> str:
    """Return this command as it goes on with a run."""
    words = ["python", *sys.argv] if "--resume" in sys.argv else ["python", *sys.argv, "--resume", run_id]
    return shlex.join(words)


if __name__ == "__main__":
    run_cli(main)
