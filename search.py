"""Search for the best point: run or resume a study of tracked trials.

`python search.py --help` lists the flags.
"""

import shlex
from pathlib import Path

from speaker.common.cli import (
    Parser,
    add_device,
    add_precision,
    add_tracking_uri,
    natural,
    plain_name,
    positive_float,
    positive_int,
    run_cli,
)
from speaker.common.paths import STATE
from speaker.common.signals import uninterrupted


def parser() -> Parser:
    """Return the command line."""
    flags = Parser(
        prog="search.py",
        description="Search for the best speaker classifier: run or resume a study.",
    )
    flags.add_argument(
        "--trials",
        type=positive_int,
        default=50,
        help="how many finished trials the study shall have",
    )
    flags.add_argument(
        "--data", type=Path, metavar="FOLDER", help="corpus; without one, the built-in demo corpus"
    )
    flags.add_argument(
        "--study",
        type=plain_name,
        metavar="NAME",
        help="study to run or resume; named after space and corpus if not given",
    )
    flags.add_argument(
        "--steps",
        type=positive_int,
        help="training steps of a trial; 70000 on a corpus, 100 on the demo",
    )
    flags.add_argument(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="utterances a step; 32, or all if there are fewer",
    )
    flags.add_argument(
        "--space", default="homework", metavar="NAME", help="search space: homework or wide"
    )
    flags.add_argument(
        "--seed",
        type=natural,
        default=0,
        help="of the study: sampler, weights, dropout, data order",
    )
    flags.add_argument(
        "--sampler", default="tpe", choices=("tpe", "random"), help="how points are proposed"
    )
    flags.add_argument(
        "--pruner",
        default="median",
        choices=("median", "hyperband", "none"),
        help="when to stop a trial",
    )
    flags.add_argument(
        "--timeout",
        type=positive_float,
        metavar="SECONDS",
        help="start no new trial after this time",
    )
    add_device(flags)
    add_precision(flags)
    flags.add_argument(
        "--jobs", type=positive_int, default=1, help="how many trials this machine trains at once"
    )
    flags.add_argument(
        "--storage",
        metavar="URL",
        help="Optuna's database; else $OPTUNA_STORAGE, else mlruns/optuna.db",
    )
    add_tracking_uri(flags)
    return flags


def main() -> None:
    """Run the search and print its table."""
    arguments = parser().parse_args()
    # Late: torch, optuna and mlflow take seconds to import, and --help needs none of them.
    from experiments.context import load_context, move_to_device
    from experiments.study.local_workers import run_workers
    from experiments.study.progress import Progress
    from experiments.study.search import RESUME, SearchSettings, WorkerSpec, default_storage
    from experiments.study.space import find_space
    from experiments.study.trial import run_trial
    from experiments.tracking.leaderboard import ranked, table
    from experiments.tracking.store import default_tracking_uri
    from experiments.urls import masked
    from speaker.config import DEMO_BUDGET, HOMEWORK_BASELINE
    from speaker.training.lookahead import describe

    space = find_space(arguments.space)
    storage_url = arguments.storage or default_storage(STATE)
    tracking_uri = arguments.tracking_uri or default_tracking_uri(STATE)
    context = load_context(
        arguments.data, arguments.device, arguments.precision, STATE, arguments.jobs
    )
    base = HOMEWORK_BASELINE if arguments.data else DEMO_BUDGET
    base = base.with_steps(arguments.steps) if arguments.steps else base
    settings = SearchSettings(
        name=arguments.study or f"{space.name}-{context.corpus.name}",
        space=space,
        base=context.fit_batch(base, arguments.batch_size),
        seed=arguments.seed,
        sampler=arguments.sampler,
        pruner=arguments.pruner,
        trials=arguments.trials,
        timeout=arguments.timeout,
    )
    worker = WorkerSpec(settings, context, storage_url, tracking_uri).open()
    with worker.closing():
        done = worker.finished()
        missing = settings.trials - len(done)
        if missing > 0:
            points = space.points(settings.base)
            context, costs = move_to_device(context, (points[0], points[-1]), arguments.jobs)
            with uninterrupted():
                worker.use(context)
            device, steps = context.provenance["device"], settings.base.steps
            print(
                f"Study {settings.name}: {settings.trials} trials of {steps:,} steps on {device}."
            )
            print(describe(points, costs, missing, context.compute, arguments.jobs), flush=True)
        at_once = max(1, min(arguments.jobs, missing))
        with uninterrupted(), Progress(worker.shared, settings.trials, done, at_once) as progress:
            if at_once > 1:
                spec = WorkerSpec(settings, context, storage_url, tracking_uri)
                run_workers(spec, at_once, progress)
            else:
                for trial in worker.trials():
                    config, result = run_trial(worker.shared, trial, progress.running[0])
                    progress.ended(trial.number, config, result)
    finished = len(worker.finished())
    if finished < settings.trials:
        print(f"Time is up with {finished} of {settings.trials} trials finished; {RESUME}.")
    elsewhere = ["--tracking-uri", masked(tracking_uri)] if arguments.tracking_uri else []
    print(f"\n{table(ranked(worker.shared.store, settings.name), best=5)}\n\nNext:")
    print(next_commands(settings.name, context.corpus.folder, elsewhere))


def next_commands(study: str, folder: Path, elsewhere: list[str]) -> str:
    """Return what to type after a search, a line each, fit for a shell."""
    data = ["--data", str(folder), "--model", "champion", "--out", "submission.csv"]
    commands = (
        ["experiments", "ui"],
        ["experiments", "promote", "--study", study],
        ["speaker", "predict", *data],
    )
    return "\n".join(f"  python -m {shlex.join([*command, *elsewhere])}" for command in commands)


if __name__ == "__main__":
    run_cli(main)
