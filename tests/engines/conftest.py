"""A Ray cluster for the tests of engines: its start takes seconds."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clusters import ray_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster of two machines, of one core each; that of its users is the first."""
    with ray_cluster(1, 1) as cluster:
        yield cluster
