"""A Ray cluster for the tests of engines: its start takes seconds."""

from collections.abc import Iterator
from typing import Any

import pytest

from experiments.engines.ray_connection import LOCAL

STARTS = 3  # Ray gives one 30 s, which a busy machine may exceed


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster of two machines, of one core each; that of its users is the first."""
    import ray
    from ray.cluster_utils import Cluster

    for left in reversed(range(STARTS)):
        try:
            head = {"num_cpus": 1, "_system_config": LOCAL}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            break
        except Exception:
            if not left:
                raise
    cluster.add_node(num_cpus=1, wait=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
