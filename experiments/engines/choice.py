"""Which engine the flags ask for."""

import argparse

from experiments.engines.engine import Engine
from experiments.engines.inline import Inline
from experiments.engines.processes import Processes
from experiments.engines.ray_cluster import RayCluster
from experiments.engines.ray_connection import import_ray
from speaker.common.errors import UserError


def engine_of(arguments: argparse.Namespace) -> Engine:
    """Return the engine of a command: this process for one job, if nothing else is asked for.

    Raises UserError for flags that do not go together.
    """
    jobs: int = arguments.jobs
    name = arguments.engine or ("inline" if jobs == 1 else "processes")
    address, gpus = arguments.ray_address, arguments.gpus_per_trial
    if name != "ray" and (address is not None or gpus is not None):
        flag = "--ray-address" if address is not None else "--gpus-per-trial"
        raise UserError(f"{flag} is for --engine ray, but got --engine {name}; leave one out")
    if name == "ray":
        import_ray(is_local=address is None)  # what is missing is said before the data are read
        return RayCluster(jobs, address or "", gpus)
    if name == "inline" and jobs > 1:
        raise UserError(
            f"--engine inline is one process, but got --jobs {jobs}; use --engine processes"
        )
    return Inline() if name == "inline" else Processes(jobs)
