"""A Ray cluster: it is found or made, and says of what it consists.

Ray is imported when it is used: it need not be installed.
"""

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

from experiments.engines.placement import Node
from speaker.common.devices import usable_cores
from speaker.common.errors import UserError, first_line
from speaker.common.paths import PROGRAM
from speaker.common.signals import STOPPING, Interrupted

ANSWER_S = 10  # for a cluster to take a connection
STORE_BYTES = 128 << 20  # of shared memory for a cluster of this machine: its workers have the pack

LOCAL = {
    "worker_niceness": 0,  # it is 15, and any other program goes first
    "agent_register_timeout_ms": 300_000,  # after 30 s Ray would abort: that is short under load
    "worker_register_timeout_seconds": 300,
}


def connect(address: str) -> list[Node]:
    """Connect to the cluster at an address, or make one where that is empty, unless it is done
    already; return its machines.

    Raises UserError where there is none, or none that lets us in.
    """
    ray = import_ray(is_local=not address)
    if not ray.is_initialized():
        with _keeping_signal_handlers():
            _join(address) if address else _start()
    return find_nodes()


def find_nodes() -> list[Node]:
    """Return the machines of the cluster that this process is connected to."""
    import ray

    return [
        Node(
            node["NodeManagerAddress"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
            node["NodeManagerAddress"] == ray.util.get_node_ip_address(),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def import_ray(is_local: bool) -> Any:
    """Return the library, if asked for so that nothing it starts is reached from other machines.

    Raises UserError where it is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of that
    if is_local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # its only way to a loopback address
    try:
        import ray
        from ray._private import worker
    except ImportError as error:
        raise UserError(
            f"--engine ray needs Ray, but it is not installed ({first_line(error)}); pip install "
            "-r requirements-ray.txt"
        ) from error
    # No flag of its own keeps what a cluster says of lost machines from standing between our bars.
    worker.print_to_stdstream = _say_nothing
    return ray


def _say_nothing(_data: object, ignore_prefix: bool) -> None: ...


def _start() -> None:
    """Make a cluster of this machine that ends with this process, and that no other can reach.

    Raises UserError where it does not start, as on a machine with far too much to do.
    """
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=usable_cores(),
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config=LOCAL,
        )
    except Exception as error:  # Ray has no other class for it
        raise UserError(
            f"a Ray cluster of this machine must start, but did not ({first_line(error)}); see "
            "Ray's logs, or use --engine processes"
        ) from error


def _join(address: str) -> None:
    """Connect to a cluster, to which our code is sent.

    Raises UserError where it does not let us in.
    """
    import ray

    code = [str(PROGRAM / name) for name in ("experiments", "speaker")]
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"py_modules": code, "excludes": ["__pycache__"]},
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            "--ray-address must be HOST:PORT of a Ray cluster that this machine belongs to, or "
            f"auto, but {address!r} cannot be used ({first_line(error)}); see ray status, or leave "
            "it out for a cluster of this machine"
        ) from error


@contextlib.contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Take the signals back that Ray takes while it starts: it would end the process within
    seconds.
    """
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    try:
        yield
    except SystemExit as stop:
        raise Interrupted(signal.SIGTERM) from stop
    finally:
        for signum, handler in before.items():
            if handler is not None:
                signal.signal(signum, handler)
