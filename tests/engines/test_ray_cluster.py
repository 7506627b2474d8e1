"""search.py --engine ray: a cluster whose machines die, one that is not there, and one that is made."""

import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import optuna
import pytest

from experiments.context import TrainingContext
from experiments.engines.parcel import arrays_of, seal, unseal
from experiments.engines.placement import Node, refuse_files, share_for_each, threads_for_each
from experiments.proposals.attributes import RUN_ID
from experiments.study.search import WorkerSpec
from experiments.tracking.store import TrackingStore
from speaker.common.devices import usable_cores
from speaker.data.pack import open_pack
from tests.engines.test_engines import holders, wait_for_end
from tests.helpers import PLAN, STUDY, assert_whole, refused, run, start

TRIALS = 12
SEARCH = (
    "search.py", "--data", "corpus", "--steps", "100", "--sampler", "random", "--pruner", "none",
    "--choices", "d_model=80,128", "--device", "cpu", "--jobs", "2", "--trials", TRIALS, "--engine",
)  # fmt: skip
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None or usable_cores() < 2, reason="needs Ray, and two cores for two jobs"
)


@pytest.mark.parametrize(
    ("cores", "jobs", "threads"),
    [([2], 1, 2), ([2], 2, 1), ([8, 8], 2, 8), ([8, 8], 3, 4), ([8, 2], 5, 2), ([4, 0], 4, 1)],
)
def test_threads_are_those_with_which_all_jobs_fit(
    cores: list[int], jobs: int, threads: int
) -> None:
    assert threads_for_each(cores, jobs) == threads


@pytest.mark.parametrize(
    ("gpus", "jobs", "share"), [([1], 1, 1.0), ([1], 2, 0.5), ([1, 1], 3, 0.5), ([1], 3, 0.3333)]
)
def test_gpus_are_shared_by_all_jobs(gpus: list[int], jobs: int, share: float) -> None:
    assert share_for_each(gpus, jobs) == share
    assert share_for_each([4], 5, 0.25) == 0.25


def test_more_jobs_than_a_cluster_has_room_for_are_one_line() -> None:
    assert refused(lambda: threads_for_each([2, 2], 5)) == (
        "--jobs must be at most the number of the cluster's cores, 4, on CPUs, but got 5; use fewer"
    )
    assert refused(lambda: share_for_each([1, 1], 5, 0.5)) == (
        "--jobs must have room on the cluster's GPUs, 2 with 2 trials each, but got 5; use at most "
        "4, or a smaller --gpus-per-trial"
    )
    assert refused(lambda: share_for_each([0], 1)).endswith("but got 1; use --device cpu")


@pytest.fixture
def spec(state: Path, context: TrainingContext) -> WorkerSpec:
    return WorkerSpec(PLAN, context, f"sqlite:///{state}/optuna.db", f"sqlite:///{state}/mlflow.db")


def test_a_search_travels_without_its_pack(
    spec: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = open_pack(spec.context.corpus, tmp_path / "packs")
    monkeypatch.chdir(tmp_path)
    spec = replace(
        spec,
        storage_url="sqlite:///mlruns/optuna.db",
        context=replace(spec.context, pack=pack, checkpoints=Path("mlruns/checkpoints")),
    )
    parcel, arrays = seal(spec), arrays_of(pack)
    assert len(parcel.search) < pack.frames.nbytes
    here = unseal(parcel, lambda: pytest.fail("this machine has the pack"))
    assert here.storage_url == f"sqlite:///{tmp_path}/mlruns/optuna.db"
    assert here.context.checkpoints == tmp_path / "mlruns" / "checkpoints"
    rmtree(pack.folder)
    for array in arrays.values():
        array.flags.writeable = False  # as shared memory is
    there = unseal(parcel, lambda: arrays).context.pack
    assert (there.digest, there.speakers, there.longest) == (
        pack.digest,
        pack.speakers,
        pack.longest,
    )
    assert there.frames.data_ptr() == arrays["frames"].ctypes.data, "it was copied"
    assert all(bool((getattr(there, name) == getattr(pack, name)).all()) for name in arrays)


def test_other_machines_cannot_reach_files_of_this_one(spec: WorkerSpec) -> None:
    here, there = Node("10.0.0.1", 2, 0, is_here=True), Node("10.0.0.2", 2, 0, is_here=False)
    refuse_files(spec, [here, here])
    server, served = "postgresql+psycopg://u@h/db", "http://h:5000"
    spread = [here, there]
    refuse_files(replace(spec, storage_url=server, tracking_uri=served), spread)
    for storage, tracking in (
        (spec.storage_url, served),
        (server, spec.tracking_uri),
        (server, "mlruns"),
        (server, "file:///mlruns"),
    ):
        mixed = replace(spec, storage_url=storage, tracking_uri=tracking)
        said = refused(partial(refuse_files, mixed, spread))
        assert re.search(
            "but 10.0.0.2 cannot reach .*; give both, or leave out --ray-address$", said
        )


def processes_of(node: Any) -> list[int]:
    """Return the ids of a machine's processes, workers included."""
    raylet = node.all_processes["raylet"][0].process.pid
    threads = Path(f"/proc/{raylet}/task").iterdir()  # each has the children that it has started
    children = [each for thread in threads for each in (thread / "children").read_text().split()]
    return [raylet, *map(int, children)]


def kill_busy_node(cluster: Any, search: "subprocess.Popen[str]", home: Path) -> bool:
    """Once a worker is at work on the second machine, kill that with all that runs there, at once;
    tell whether the search has not ended before.
    """
    (node,) = cluster.worker_nodes
    while not holders(home) & set(processes_of(node)):
        if search.poll() is not None:
            return False
        time.sleep(0.1)
    time.sleep(1)
    for process in processes_of(node):
        os.kill(process, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
    return True


def ends(home: Path) -> dict[int, tuple[object, ...]]:
    """Return what each trial of a search was and gave, by number."""
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{home}/mlruns/optuna.db")
    store = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db")
    runs = store.runs("tags.kind = 'trial'")
    weights = {each.info.run_id: each.data.tags["weights.sha256"] for each in runs}
    return {
        trial.number: (trial.params, trial.value, weights[trial.user_attrs[RUN_ID]])
        for trial in study.get_trials()
    }


@pytest.mark.slow
@needs_ray
def test_machines_that_die_cost_no_trial(home: Path, tmp_path: Path, cluster: Any) -> None:
    undisturbed = tmp_path / "undisturbed"
    copytree(home / "corpus", undisturbed / "corpus")
    done = run(undisturbed, *SEARCH, "processes")
    assert done.returncode == 0, done.stderr
    process = start(home, *SEARCH, "ray", "--ray-address", cluster.address)
    kills = 0
    for _ in range(2):
        if kill_busy_node(cluster, process, home):
            kills += 1
            cluster.add_node(num_cpus=1, wait=False)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert kills == 2, "nobody took the place of a worker on its machine"
    lost = re.findall(r"^worker [12] was killed \((.+)\); another takes its place$", output, re.M)
    assert len(lost) == kills, output
    assert "raylet" not in output, "Ray's own words stand between ours"
    assert_whole(home, TRIALS)
    assert ends(home) == ends(undisturbed)


@pytest.mark.slow
@needs_ray
def test_a_cluster_that_is_made_ends_with_its_search(home: Path) -> None:
    """Ctrl-C goes to all that the terminal has started, and so to Ray's own processes."""
    before = rays()
    process = start(home, *SEARCH, "ray", start_new_session=True)
    wait_for_end(process)
    assert listening_beyond_loopback(rays() - before) == []
    os.killpg(process.pid, signal.SIGINT)
    _output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert re.fullmatch(
        r"\d+ trials? finished; run the same command to resume\.\nStopped by SIGINT\.\n", errors
    ), errors
    deadline = time.monotonic() + 30
    while rays() - before or holders(home):
        assert time.monotonic() < deadline, "processes outlived the search"
        time.sleep(0.2)


@pytest.mark.slow
@needs_ray
def test_an_address_where_nobody_listens_is_one_line(home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for wrong in (address, "nonsense", "ray://127.0.0.1:1"):
        done = run(home, *SEARCH, "ray", "--ray-address", wrong)
        assert done.returncode == 2, done.stderr
        assert re.fullmatch(
            f"error: --ray-address must be HOST:PORT of .*, but '{wrong}' cannot be used \\(.+\\); .*\n",
            done.stderr,
        ), done.stderr


def rays() -> set[int]:
    """Return the ids of Ray's processes, workers included."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            is_dead = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:  # it has ended
            continue
        if not is_dead and (words.startswith(b"ray::") or b"/ray/" in words):
            found.add(int(process.name))
    return found


def listening_beyond_loopback(processes: set[int]) -> list[str]:
    """Return the addresses, as the kernel writes them, on which processes listen for others."""
    sockets = set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").glob("*"):
            try:
                sockets.add(os.readlink(link))
            except OSError:  # it was closed
                continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]  # fmt: skip
    mine = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    assert mine, "nothing listens at all"
    return [each for each in mine if not each.rpartition(":")[0].endswith("0100007F")]
