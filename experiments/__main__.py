"""`python -m experiments VERB`: everything about finished work."""

from experiments.model_folders import model_folders
from experiments.verbs import (
    compare,
    confirm,
    demote,
    doctor,
    effects,
    fetch,
    gc,
    promote,
    repair,
    replay,
    report,
    transfer,
    ui,
)
from speaker.common.cli import Parser, add_tracking_uri, run_cli
from speaker.prediction.verbs import add_verbs


def parser() -> Parser:
    """Return the command line."""
    flags = Parser(
        prog="python -m experiments", description="Look at finished trials and use the best."
    )
    verbs = flags.add_subparsers(dest="verb", required=True, metavar="VERB")
    tracking = Parser(add_help=False)
    add_tracking_uri(tracking)
    for verb in (
        compare,
        effects,
        repair,
        report,
        confirm,
        replay,
        promote,
        demote,
        fetch,
        transfer,
        doctor,
        gc,
    ):
        verb.add(verbs, tracking)
    add_verbs(verbs, model_folders)
    ui.add(verbs, tracking)
    return flags


def main() -> None:
    """Run a verb."""
    arguments = parser().parse_args()
    from experiments.tracked_training import explaining_failures  # late: --help needs no torch

    with explaining_failures("run the same command again"):
        arguments.run(arguments)


if __name__ == "__main__":
    run_cli(main)
