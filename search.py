"""Search for the best point: run or resume a study of tracked trials.

`python search.py --help` lists the flags.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.verbs.flags import FRESH_SEEDS, add_engine
from speaker.common.cli import (
    Parser,
    add_device,
    add_precision,
    add_storage,
    add_store_patience,
    add_tracking_uri,
    byte_size,
    natural,
    plain_name,
    positive_float,
    positive_int,
    printable,
    run_cli,
)
from speaker.common.paths import STATE, next_commands

if TYPE_CHECKING:
    from experiments.context import TrainingContext
    from experiments.engines.engine import Engine
    from experiments.proposals.presets import Preset
    from experiments.proposals.space import Space
    from experiments.study.search import StudyWorker, WorkerSpec
    from experiments.study.settings import SearchSettings
    from speaker.config import TrialConfig
    from speaker.data.corpus import Corpus


WIDTH = 79  # of a line of words, in characters


def parser() -> Parser:
    """Return the command line."""
    flags = Parser(
        prog="search.py",
        description="Search for the best speaker classifier: run or resume a study.",
    )
    _add_training(flags.add_argument_group("what is trained"))
    _add_space(flags.add_argument_group("which points are tried"))
    _add_search(flags.add_argument_group("how the best is found"))
    _add_end(flags.add_argument_group("when the search ends"))
    machine = flags.add_argument_group("where it runs and is kept")
    add_device(machine)
    add_precision(machine)
    add_engine(machine)
    add_storage(machine)
    add_tracking_uri(machine)
    add_store_patience(machine)
    _add_retention(machine)
    return flags


def _add_training(flags: argparse._ActionsContainer) -> None:
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
        "--seed",
        type=natural,
        default=0,
        help="of the study: sampler, weights, dropout, data order",
    )


def _add_space(flags: argparse._ActionsContainer) -> None:
    flags.add_argument(
        "--space",
        default="homework",
        metavar="NAME",
        help="search space: homework, training or wide",
    )
    flags.add_argument(
        "--fix",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="keep a field of the config at a value, lr=3e-4 say; may be repeated",
    )
    flags.add_argument(
        "--choices",
        action="append",
        default=[],
        metavar="FIELD=VALUE,...",
        help="let a field take these values alone, d_model=128,256 say; may be repeated",
    )
    flags.add_argument(
        "--preset",
        choices=("homework", "four-edits", "reproduce"),
        help="train these points alone: the homework's two, all 16 between them, or published ones",
    )
    flags.add_argument(
        "--seeds",
        type=positive_int,
        metavar="N",
        help=f"of each point of --preset (default 1) or --confirm (default {FRESH_SEEDS})",
    )


def _add_search(flags: argparse._ActionsContainer) -> None:
    flags.add_argument(
        "--sampler", default="tpe", choices=("tpe", "gp", "random"), help="how points are proposed"
    )
    flags.add_argument(
        "--pruner",
        default="halving",
        choices=("halving", "median", "hyperband", "none"),
        help="when to stop a trial early",
    )
    flags.add_argument(
        "--prune-presets",
        action="store_true",
        help="let the homework's two points be stopped early, too",
    )
    flags.add_argument(
        "--rescue",
        action="store_true",
        help="try a point that collapsed once more, pre-norm, or else with a third of the "
        "learning rate; such trials count among --trials",
    )
    flags.add_argument(
        "--confirm",
        type=positive_int,
        metavar="N",
        help="at the end train the best N points again, on --seeds fresh seeds each",
    )


def _add_end(flags: argparse._ActionsContainer) -> None:
    flags.add_argument(
        "--trials",
        type=positive_int,
        default=50,
        help="how many finished trials the study shall have; with --preset, all of its points",
    )
    flags.add_argument(
        "--timeout",
        type=positive_float,
        metavar="SECONDS",
        help="start no new trial after this time",
    )
    flags.add_argument(
        "--patience",
        type=positive_int,
        metavar="N",
        help="start no new trial when the last N that ended brought no better answer",
    )
    flags.add_argument(
        "--budget",
        type=positive_int,
        metavar="STEPS",
        help="start no new trial once those of the study that ended have trained so many steps",
    )


def _add_retention(flags: argparse._ActionsContainer) -> None:
    flags.add_argument(
        "--keep",
        type=positive_int,
        metavar="N",
        help="keep the weights of the best N trials alone; a run says how to make its own again",
    )
    flags.add_argument(
        "--disk",
        type=byte_size,
        metavar="SIZE",
        help="keep no more than this of the study's artifacts, 2GB say: the worst weights go first",
    )


def main() -> None:
    """Run the search and print what it found."""
    run(parser().parse_args())


# Imports are late: torch, optuna and mlflow take seconds, and --help needs none of them.


def run(arguments: argparse.Namespace) -> None:
    """Run a search and say what was found. Raises UserError for what keeps it from that."""
    from experiments.engines.choice import engine_of
    from experiments.study.search import RESUME
    from experiments.study.trial import STORE_FAILURES
    from experiments.tracked_training import explaining_failures

    engine = engine_of(arguments)
    spec = make_spec(arguments, engine)
    with explaining_failures(RESUME, STORE_FAILURES):
        search(spec, engine, arguments)


def search(spec: "WorkerSpec", engine: "Engine", arguments: argparse.Namespace) -> None:
    """Run a search, confirm its best if asked to, and say what was found."""
    from experiments.confirm import Machine, confirm_best
    from experiments.engines.session import run_search
    from experiments.report.publish import publish
    from experiments.tracking.access import describe_places
    from experiments.tracking.pages import served_at
    from experiments.upkeep.doctor.checks import sweep
    from experiments.upkeep.retention import Retention
    from experiments.urls import masked

    worker = spec.open()
    insist = worker.patience.insist
    name, store = spec.settings.name, worker.shared.store
    print(describe_places(store.uri, store.decided_by), flush=True)
    for line in sweep(store, spec.storage_url, STATE, worker.study):
        print(printable(line), flush=True)
    try:
        run_search(worker, engine)
    except KeyboardInterrupt:
        publish(store, name)  # the study is closed by now, and goes on as if there were none
        raise
    has_winner = print_results(spec, worker)
    if isinstance(retain := spec.retain, Retention):
        print(f"{insist(lambda: retain.describe(store, name))}\n")
    report = publish(store, name, insist)
    if has_winner and arguments.confirm:
        machine = Machine(spec.context, spec.storage_url, engine, spec.store_patience, True)
        confirm_best(store, name, arguments.confirm, arguments.seeds or FRESH_SEEDS, machine)
        report = publish(store, name, insist)  # again, with what was confirmed
    if report:
        print(f"Report: {report.removeprefix(f'{Path.cwd().as_uri()}/')}")
    if board := insist(lambda: served_at(store, name)):
        print(f"Best trials: {board}")
    if has_winner:
        elsewhere = ["--tracking-uri", masked(spec.tracking_uri)] if arguments.tracking_uri else []
        print(f"Next:\n{commands_after(name, spec.context.corpus, elsewhere)}")


def make_spec(arguments: argparse.Namespace, engine: "Engine") -> "WorkerSpec":
    """Return the search that is asked for. Raises UserError for what makes none."""
    from experiments.analysis.leaderboard import expectations
    from experiments.context import load_context
    from experiments.study.search import WorkerSpec
    from experiments.study.storage import default_storage
    from experiments.tracking.store import default_tracking_uri
    from experiments.upkeep.retention import Retention

    _refuse_contradictions(arguments)
    base = _base(arguments)
    _find_points(arguments, base)  # what they refuse is said before the data are read
    context = load_context(
        arguments.data, arguments.device, arguments.precision, STATE, engine.jobs_here
    )
    context = engine.settle(context)
    settings = _make_settings(arguments, context, base)
    retain = Retention(arguments.keep, arguments.disk) if arguments.keep or arguments.disk else None
    return WorkerSpec(
        settings,
        context,
        storage_url=arguments.storage or default_storage(STATE),
        tracking_uri=arguments.tracking_uri or default_tracking_uri(STATE),
        expectations=expectations if arguments.patience else None,
        retain=retain,
        store_patience=arguments.store_patience,
    )


def _base(arguments: argparse.Namespace) -> "TrialConfig":
    """Return the point that all others are variations of."""
    from speaker.config import DEMO_BUDGET, HOMEWORK_BASELINE

    base = HOMEWORK_BASELINE if arguments.data else DEMO_BUDGET
    base = base.with_steps(arguments.steps) if arguments.steps else base
    return base.replace(**_fixed(arguments))


def _make_settings(
    arguments: argparse.Namespace, context: "TrainingContext", base: "TrialConfig"
) -> "SearchSettings":
    """Return which points are tried, on a corpus, and how the best is found."""
    from experiments.study.settings import SearchSettings

    base = context.fit_batch(base, arguments.batch_size)
    space, presets = _find_points(arguments, base, context.utterances())
    return SearchSettings(
        name=arguments.study or f"{arguments.preset or space.name}-{context.corpus.name}",
        space=space,
        base=base,
        seed=arguments.seed,
        sampler=arguments.sampler,
        pruner=arguments.pruner,
        trials=len(presets) if arguments.preset else arguments.trials,
        timeout=arguments.timeout,
        presets=presets,
        preset=f"{arguments.preset} on {arguments.seeds or 1} seeds" if arguments.preset else "",
        prune_presets=arguments.prune_presets,
        patience=arguments.patience,
        budget=arguments.budget,
        rescue=arguments.rescue,
    )


def _fixed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the hyperparameters that are given, by name."""
    from experiments.proposals.space import parse_field

    fixed = {name: values[0] for name, values in map(parse_field, arguments.fix)}
    return fixed | ({"batch_size": arguments.batch_size} if arguments.batch_size else {})


def _find_points(
    arguments: argparse.Namespace, base: "TrialConfig", utterances: int = sys.maxsize
) -> "tuple[Space, tuple[Preset, ...]]":
    """Return the space for so many training utterances, and the points that a study begins with."""
    from experiments.proposals.presets import SETS, homework_points
    from experiments.proposals.space import REPRODUCE, find_space, parse_field

    fixed, choices = _fixed(arguments), dict(map(parse_field, arguments.choices))
    space = find_space(arguments.space, base, utterances).narrowed(fixed, choices)
    if arguments.preset:
        space = REPRODUCE if arguments.preset == REPRODUCE.name else space
        return space, SETS[arguments.preset](space, arguments.seeds or 1, base)
    return space, homework_points(space, fixed=fixed, base=base)


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Raise UserError if flags are given that do not go with the --preset."""
    from speaker.common.errors import UserError

    preset = arguments.preset
    if preset and arguments.patience:
        raise UserError(
            f"--patience is for points that are proposed, but --preset {preset} has points of its "
            "own; leave out one of them"
        )
    if preset and arguments.rescue:
        raise UserError(
            f"--preset trains its points alone, but got {preset} with --rescue; leave out one of "
            "the two"
        )
    if preset == "reproduce" and (
        arguments.fix or arguments.choices or arguments.space != "homework"
    ):
        raise UserError(
            "--preset reproduce trains points as they were published, but got another space; leave "
            "out --space, --fix and --choices"
        )


def print_results(spec: "WorkerSpec", worker: "StudyWorker") -> bool:
    """Say what was trained and found; return whether there is a winner."""
    from experiments.analysis.answer import describe_answer
    from experiments.analysis.effects import describe_effects, effects_of
    from experiments.analysis.leaderboard import describe_unfair, ranked
    from experiments.analysis.reproduction import describe_reproduction
    from experiments.analysis.table import table
    from experiments.engines.session import describe_end

    settings = spec.settings
    finished, steps = len(worker.finished()), worker.steps()
    print(describe_end(settings, worker.ended_by(), finished))
    planned = finished * settings.base.steps
    saved = (
        f" of {planned:,} steps; stopping early saved the others." if steps < planned else " steps."
    )
    print(f"Trained {steps:,}{saved}")
    rows = worker.patience.insist(lambda: ranked(worker.shared.store, settings.name))
    print(f"\n{table(rows, best=5)}\n\n{describe_answer(rows)}\n")
    if unfair := describe_unfair(rows):
        print(f"{unfair}\n")
    if published := describe_reproduction(rows):
        print(f"{published}\n")
    if effects := effects_of(rows):
        print(f"{describe_effects(effects)}\n")
    return any(row.state == "complete" for row in rows)


def commands_after(study: str, corpus: "Corpus", elsewhere: list[str]) -> str:
    """Return what to type after a search, a line each, fit for a shell that is given all of them:
    the last one stays until Ctrl-C.
    """
    here, folder = Path.cwd(), corpus.folder
    folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
    predict = [["speaker", "predict", "--data", str(folder), "--model", "champion"]]
    commands = (
        ["experiments", "promote", "--study", study],
        *(predict if corpus.test else []),
        ["experiments", "ui"],
    )
    return next_commands(*(shlex.join([*command, *elsewhere]) for command in commands))


if __name__ == "__main__":
    run_cli(main)
