"""Say which of the homework's four edits earned how much."""

import argparse
from pathlib import Path
from typing import Any

from experiments.verbs.flags import add_study
from speaker.common.cli import Parser, printable
from speaker.common.errors import UserError
from speaker.common.paths import STATE, validate_output_path


def add(verbs: Any, tracking: Parser) -> None:
    """Add the verb to subparsers."""
    flags = verbs.add_parser(
        "effects", parents=[tracking], help="which of the homework's four edits earned how much"
    )
    add_study(flags)
    flags.add_argument("--figure", type=Path, metavar="FILE", help="PNG to draw, too")
    flags.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print, and draw, what each edit earned."""
    from experiments.analysis.effects import describe_effects, draw_effects, effects_of
    from experiments.analysis.leaderboard import ranked
    from experiments.tracking.store import existing_store

    if arguments.figure:
        validate_output_path(arguments.figure)
    effects = effects_of(ranked(existing_store(arguments.tracking_uri, STATE), arguments.study))
    if effects is None:
        raise UserError(
            f"study {arguments.study!r} must hold all 16 corners of a seed, but does not; "
            "run python search.py --preset four-edits"
        )
    print(describe_effects(effects))
    if arguments.figure:
        draw_effects(effects, arguments.figure)
        print(f"Drew {printable(arguments.figure)}.")
