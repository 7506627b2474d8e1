"""Which engine the flags ask for."""

import argparse

from experiments.engines.engine import Engine
from experiments.engines.inline import Inline
from experiments.engines.processes import Processes
from speaker.common.errors import UserError


def engine_of(arguments: argparse.Namespace) -> Engine:
    """Return the engine of a command: this process for one job, if nothing else is asked for.

    Raises UserError for flags that do not go together.
    """
    jobs: int = arguments.jobs
    name = arguments.engine or ("inline" if jobs == 1 else "processes")
    if name == "inline" and jobs > 1:
        raise UserError(
            f"--engine inline is one process, but got --jobs {jobs}; use --engine processes"
        )
    return Inline() if name == "inline" else Processes(jobs)
