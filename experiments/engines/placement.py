"""What of a cluster each worker gets, and what its machines must share."""

import math
from dataclasses import dataclass

from experiments.study.search import WorkerSpec
from experiments.urls import shown, sqlite_path
from speaker.common.errors import UserError

FINEST = 10_000  # parts of a GPU: none is smaller than one of so many


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, or a part of one."""

    address: str
    cores: int
    gpus: int
    is_here: bool  # on this machine


def threads_for_each(cores: list[int], jobs: int) -> int:
    """Return how many threads each of `jobs` workers has, on machines of so many cores.

    Raises UserError for fewer cores than jobs.
    """
    if sum(cores) < jobs:
        raise UserError(
            f"--jobs must be at most the number of the cluster's cores, {sum(cores)}, on CPUs, but "
            f"got {jobs}; use fewer"
        )
    fitting = (n for n in range(max(cores), 0, -1) if sum(c // n for c in cores) >= jobs)
    return next(fitting)


def share_for_each(gpus: list[int], jobs: int, wanted: float | None = None) -> float:
    """Return the part of a GPU that each of `jobs` workers has, on machines of so many GPUs: what
    is wanted, or the most that there is.

    Raises UserError where there is too little.
    """
    total = sum(gpus)
    at_once = math.floor(1 / wanted + 1e-9) if wanted else math.ceil(jobs / max(total, 1))
    if total * at_once < jobs:
        advice = f"use at most {total * at_once}, or a smaller --gpus-per-trial" if total else (
            "use --device cpu"
        )  # fmt: skip
        raise UserError(
            f"--jobs must have room on the cluster's GPUs, {total} with {at_once} trials each, but "
            f"got {jobs}; {advice}"
        )
    return wanted or math.floor(FINEST / at_once) / FINEST


def refuse_files(spec: WorkerSpec, nodes: list[Node]) -> None:
    """Raise UserError where workers on other machines would need this one's files."""
    local = [
        shown(url)
        for url in (spec.storage_url, spec.tracking_uri)
        if sqlite_path(url) or not url.startswith(("postgresql", "http"))
    ]
    if local and (others := elsewhere(nodes)):
        raise UserError(
            "workers on several machines must share --storage of a PostgreSQL server and "
            f"--tracking-uri of an MLflow server, but {others[0]} cannot reach {local[0]}; give "
            "both, or leave out --ray-address"
        )


def elsewhere(nodes: list[Node]) -> list[str]:
    """Return the addresses of other machines."""
    return sorted({node.address for node in nodes if not node.is_here})
