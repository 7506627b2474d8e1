"""A real Ray cluster on this machine. Ray is imported when it is asked for: it need not be there."""

import contextlib
from collections.abc import Iterator
from typing import Any

from experiments.engines.ray_connection import LOCAL, import_ray

STARTS = 3  # Ray gives one 30 s, which a busy machine may exceed


@contextlib.contextmanager
def ray_cluster(*cores: int) -> Iterator[Any]:
    """A cluster of machines of so many cores each; that of its users is the first."""
    cluster = _start(cores[0])
    for each in cores[1:]:
        cluster.add_node(num_cpus=each, wait=False)
    yield cluster
    import_ray(is_local=False).shutdown()
    cluster.shutdown()


def _start(cores: int) -> Any:
    from ray.cluster_utils import Cluster

    for left in reversed(range(STARTS)):
        try:
            head = {"num_cpus": cores, "_system_config": LOCAL}
            return Cluster(initialize_head=True, head_node_args=head)
        except Exception:
            if not left:
                raise
    return None
