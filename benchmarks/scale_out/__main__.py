"""How far a study scales: how long a worker needs to join it and to claim a trial, by the number of
trials that there are, and where the next limit lies.

`python -m benchmarks.scale_out` fills studies with invented trials, on SQLite and on a PostgreSQL
server of its own, and takes part in each with the worker of a search. Two locks are what all
workers of a study wait for: the study's, under which they claim, and that of its best so far, which
is logged whenever a trial ends. The seconds that they are held bound the trials of any number of
workers. It writes the figures, and a page of what follows from them.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from benchmarks.scale_out.fill import fill
from benchmarks.scale_out.page import workers, write_page
from experiments.context import PACKAGES, load_context
from experiments.proposals.space import TRAINING, find_space
from experiments.study.search import StudyWorker, WorkerSpec
from experiments.study.settings import SearchSettings
from experiments.study.trial import open_run
from experiments.tracking.run import TrackedRun
from speaker.common.devices import find_compute
from speaker.common.provenance import provenance
from speaker.config import DEMO_BUDGET
from tests.servers import PostgresServer

CLAIMS = 20  # that are timed
PAGE = Path(__file__).parents[1] / "results" / "scale_out.md"


def main() -> None:
    """Print a line a study, and write the figures with their origin, and the page."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--trials", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    flags.add_argument("--folder", type=Path, help="for the databases; they take 2 GB")
    flags.add_argument("--out", type=Path, default=PAGE.with_suffix(".json"))
    arguments = flags.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = list(_measure_all(Path(folder), arguments.trials))
    origin = provenance(find_compute("cpu", "fp32"), PACKAGES)
    arguments.out.write_text(json.dumps({"rows": rows, "origin": origin}, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(write_page(rows))


def _measure_all(folder: Path, counts: list[int]) -> Iterator[dict[str, Any]]:
    settings = _settings(folder)
    with contextlib.closing(PostgresServer(folder / "postgres")) as postgres:
        for storage in ("SQLite", "PostgreSQL"):
            for count in counts:
                name = f"{storage.lower()}_{count}"
                is_file = storage == "SQLite"
                url = f"sqlite:///{folder}/{name}.db" if is_file else postgres.make(name)
                mlflow = f"sqlite:///{folder}/mlflow_{name}.db"
                spec = replace(settings, storage_url=url, tracking_uri=mlflow)
                row = {"storage": storage, "trials": count, **measure(spec, count)}
                print(*row.items(), f"{workers(row):,} workers", flush=True)
                yield row


def _settings(folder: Path) -> WorkerSpec:
    context = load_context(None, "cpu", "fp32", folder)
    space = find_space(TRAINING, DEMO_BUDGET, context.utterances())
    settings = SearchSettings("s", space, DEMO_BUDGET, 0, "tpe", "halving", 10**6, None)
    return WorkerSpec(settings, context, "", "")


def measure(spec: WorkerSpec, count: int) -> dict[str, float]:
    """Return what a worker needs with a study of so many trials, in seconds."""
    fill(spec.open(), count)
    spec.open()  # which logs the best of all that were made
    begun = time.perf_counter()
    worker = spec.open()
    claimed = worker._claims.take()  # the first looks at all trials
    figures = {"join_s": time.perf_counter() - begun}
    assert claimed
    claimed[1].release()
    held = _timed_locks(worker)
    seconds = defaultdict[str, list[float]](list)
    for _ in range(CLAIMS):
        with _timed(seconds["claim_s"]):
            claimed = worker._claims.take()
        assert claimed
        trial, lock = claimed
        with _timed(seconds["open_run_s"]):
            run = _open_run(worker, trial)
        with _timed(seconds["tell_s"]):
            worker.study.tell(trial, 0.5)
        with _timed(seconds["best_s"]):
            worker._log_best_so_far()
        run.close("complete")
        lock.release()
    figures |= {name: median(values) for name, values in seconds.items()}
    return figures | {f"{name}_lock_s": sum(held[name]) / CLAIMS for name in ("study", "best")}


def _open_run(worker: StudyWorker, trial: Any) -> TrackedRun:
    return open_run(worker.shared, trial, worker.shared.config(trial), tqdm(disable=True))


def _timed_locks(worker: StudyWorker) -> dict[str, list[float]]:
    """Return the seconds for which a worker holds its locks from now on, by name."""
    held = defaultdict[str, list[float]](list)
    holding: Callable[[str], contextlib.AbstractContextManager[None]] = worker._locks.holding

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        with holding(name), _timed(held[name]):
            yield

    worker._locks.holding = timed  # type: ignore[method-assign]
    return held


@contextlib.contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)


if __name__ == "__main__":
    main()
