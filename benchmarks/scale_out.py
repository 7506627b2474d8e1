"""How far a study scales: how long a worker needs to join it and to claim a trial, by the number of
trials that there are, and where the next limit lies.

`python -m benchmarks.scale_out` fills studies with invented trials, on SQLite and on a PostgreSQL
server of its own, and takes part in each with the worker of a search. The study's lock is what all
workers wait for: the seconds that a claim holds it bound the claims of any number of workers.
"""

import argparse
import contextlib
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pgserver
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from experiments.context import TrainingContext, load_context
from experiments.proposals.space import TRAINING, Space, find_space
from experiments.study.contract import contract_of, open_study
from experiments.study.search import StudyWorker, WorkerSpec
from experiments.study.settings import SearchSettings
from experiments.study.storage import open_storage
from speaker.common.devices import find_compute
from speaker.common.provenance import provenance
from speaker.config import DEMO_BUDGET

EVALUATIONS = 5
CLAIMS = 20  # that are timed
MINUTES = 27  # that a trial of the homework takes


def main() -> None:
    """Print a table, and write the figures with their origin."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--trials", type=int, nargs="+", default=[100, 1_000, 10_000])
    flags.add_argument("--out", type=Path, default=Path("benchmarks/results/scale_out.json"))
    arguments = flags.parse_args()
    compute = find_compute("cpu", "fp32")
    with tempfile.TemporaryDirectory() as folder:
        context = load_context(None, "cpu", "fp32", Path(folder))
        rows = list(_measure_all(Path(folder), context, arguments.trials))
    result = {
        "rows": rows,
        "origin": provenance(compute, ("torch", "optuna", "mlflow", "sqlalchemy")),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _measure_all(
    folder: Path, context: TrainingContext, counts: list[int]
) -> Iterator[dict[str, Any]]:
    print(f"{'storage':<11} {'trials':>7} {'join':>8} {'claim':>8} {'held':>8}  at most")
    with contextlib.closing(_Postgres(folder / "postgres")) as postgres:
        for storage in (f"sqlite:///{folder}/optuna.db", postgres.url):
            for count in counts:
                row = measure(storage, folder, context, count)
                print(
                    f"{row['storage']:<11} {count:>7,} {row['join_s']:>6.2f} s "
                    f"{row['claim_s']:>6.3f} s {row['held_s']:>6.3f} s  "
                    f"{1 / row['held_s']:,.1f} claims a second, {row['workers']:,} workers with "
                    f"trials of {MINUTES} minutes",
                    flush=True,
                )
                yield row


class _Postgres:
    def __init__(self, folder: Path) -> None:
        self._server = pgserver.get_server(folder)
        self.url = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def close(self) -> None:
        self._server.cleanup()


def measure(url: str, folder: Path, context: TrainingContext, count: int) -> dict[str, Any]:
    """Return what a worker needs with a study of so many trials, in seconds."""
    space = find_space(TRAINING, DEMO_BUDGET, context.utterances())
    settings = SearchSettings(
        f"of-{count}", space, DEMO_BUDGET, 0, "tpe", "halving", count + CLAIMS, None
    )
    _fill(url, settings, context, count)
    began = time.perf_counter()
    worker = WorkerSpec(
        settings, context, url, f"sqlite:///{folder}/{url.partition(':')[0]}.db"
    ).open()
    join = time.perf_counter() - began
    claims, held = zip(*(_claim(worker) for _ in range(CLAIMS)), strict=True)
    return {
        "storage": url.partition(":")[0].partition("+")[0],
        "trials": count,
        "join_s": join,
        "claim_s": median(claims),
        "held_s": median(held),
        "workers": int(60 * MINUTES / median(held)),
    }


def _claim(worker: StudyWorker) -> tuple[float, float]:
    """Claim a trial and end it; return the seconds that the claim took, and that it held the
    study's lock.
    """
    locks, held = worker._locks, [0.0]
    holding = locks.holding

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        with holding(name):
            began = time.perf_counter()
            yield
            held[0] += time.perf_counter() - began

    locks.holding = timed  # type: ignore[method-assign]
    try:
        began = time.perf_counter()
        claimed = worker._claim()
        seconds = time.perf_counter() - began
    finally:
        locks.holding = holding  # type: ignore[method-assign]
    assert claimed is not None
    trial, lock = claimed
    worker.study.tell(trial, 0.5)
    lock.release()
    return seconds, held[0]


def _fill(url: str, settings: SearchSettings, context: TrainingContext, count: int) -> None:
    """Make a study with so many ended trials in it."""
    storage, draw = open_storage(url), random.Random(count)  # noqa: S311  # no secrets
    study = open_study(storage, settings.name, contract_of(settings, context))
    for _ in range(count):
        study.add_trial(_trial(settings.space, draw))
    storage.engine.dispose()


def _trial(space: Space, draw: random.Random) -> FrozenTrial:
    ranges = space.distributions()
    end, every = 0.3 + 0.3 * draw.random(), DEMO_BUDGET.steps // EVALUATIONS
    rows = {every * number: end * number / EVALUATIONS for number in range(1, EVALUATIONS + 1)}
    stopped = draw.random() < 0.5
    kept = dict([*rows.items()][:1]) if stopped else rows
    return create_trial(
        state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
        value=[*kept.values()][-1],
        params={name: _draw(each, draw) for name, each in ranges.items()},
        distributions=ranges,
        intermediate_values=kept,
    )


def _draw(values: BaseDistribution, draw: random.Random) -> Any:
    if isinstance(values, CategoricalDistribution):
        return draw.choice(values.choices)
    if isinstance(values, IntDistribution):
        return draw.randint(values.low, values.high)
    assert isinstance(values, FloatDistribution)
    return math.exp(draw.uniform(math.log(values.low), math.log(values.high)))


if __name__ == "__main__":
    main()
