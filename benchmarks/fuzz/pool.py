"""Processes that run cases: one that hangs or dies costs its case alone."""

import multiprocessing
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tqdm import tqdm

from benchmarks.fuzz.cases import LIMIT_S, Bench, Verdict
from benchmarks.fuzz.examples import Example

FORK = multiprocessing.get_context("fork")  # the libraries are imported once
WAIT_S = 60  # on the clock: a machine is shared, and a pipe that is waited for takes no CPU time
Plan = tuple[Path, list[Example], int]  # what a Bench is made of


@dataclass
class Worker:
    """A process, and the cases that it has still to run."""

    left: list[int]
    folder: Path
    process: multiprocessing.process.BaseProcess | None = None
    connection: Connection | None = None
    began: tuple[float, float] = (0.0, 0.0)  # of its case: seconds of CPU time, and on the clock


def run_cases(plan: Plan, numbers: Sequence[int], count: int) -> Iterator[Verdict]:
    """Yield the verdicts of cases, run by as many processes."""
    root, examples, _ = plan
    workers = [
        Worker(list(numbers[at::count]), root.with_name(f"{root.name}-{at}")) for at in range(count)
    ]
    names = [each.name for each in examples]
    try:
        with tqdm(total=len(numbers), unit="case", disable=None) as bar:
            for worker in workers:
                _start(worker, plan)
            while any(worker.left for worker in workers):
                for verdict in _hear(workers, plan, names):
                    bar.update()
                    yield verdict
    finally:
        for worker in workers:
            if worker.process:
                worker.process.kill()
                worker.process.join()
            shutil.rmtree(worker.folder, ignore_errors=True)


def _hear(workers: list[Worker], plan: Plan, names: list[str]) -> Iterator[Verdict]:
    """Yield what workers say, and the cases in which one hangs or died; start those anew."""
    ready = wait([each.connection for each in workers if each.left and each.connection], 0.5)
    for worker in workers:
        if not worker.left or worker.connection is None:
            continue
        try:
            if worker.connection in ready:
                verdict = worker.connection.recv()
                worker.left.remove(verdict.number)
                worker.began = _cpu_s(worker), time.monotonic()
                yield verdict
                continue
        except EOFError:
            yield _lost(worker, plan, names, "crash")
            continue
        cpu, clock = worker.began
        if _cpu_s(worker) - cpu > LIMIT_S or time.monotonic() - clock > WAIT_S:
            yield _lost(worker, plan, names, "hang")


def _lost(worker: Worker, plan: Plan, names: list[str], kind: str) -> Verdict:
    """Return the verdict of a case that its process did not survive, and start another one."""
    assert worker.process
    worker.process.kill()
    worker.process.join()
    number = worker.left.pop(0)
    if worker.left:
        _start(worker, plan)
    end = f"the process ended with {worker.process.exitcode}"
    return Verdict(number, names[number % len(names)], "", kind, end if kind == "crash" else "")


def _start(worker: Worker, plan: Plan) -> None:
    shutil.rmtree(worker.folder, ignore_errors=True)
    shutil.copytree(plan[0], worker.folder)
    worker.connection, there = FORK.Pipe()
    worker.process = FORK.Process(target=_work, args=(worker.folder, plan, worker.left, there))
    worker.process.start()
    there.close()
    worker.began = _cpu_s(worker), time.monotonic()


def _work(folder: Path, plan: Plan, numbers: list[int], connection: Connection) -> None:
    bench = Bench(folder, plan[1], plan[2])
    bench.limit_memory()
    for number in numbers:
        connection.send(bench.run(number))


def _cpu_s(worker: Worker) -> float:
    """Return the seconds that a process has computed."""
    assert worker.process
    try:
        fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100
