"""The short form of `python -m benchmarks.kills`: a search that is killed between any two of its
writes ends as an undisturbed one does.
"""

import pkgutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from benchmarks.kills.account import Home, account_of, differences
from benchmarks.kills.bench import STUDY, Bench, open_bench
from benchmarks.kills.plan import Kill
from benchmarks.kills.points import WRITES, all_points

# One in each part of a search: its first start, a trial's begin, rows, weights and end, the end.
ALONE = """
    database.replace.before@1 optuna.set_study_user_attr.after@1 mlflow.create_run.after@2
    checkpoint.replace.before@9 artifact.copy.half@2 optuna.set_trial_state_values.after@3
    mlflow.set_terminated.before@1 checkpoint.remove.before@1 artifact.delete.half@1
    sql.commit.after@70
"""
TOGETHER = "optuna.create_new_trial.after@3 mlflow.log_batch.after@9 lock.release.before@9"
# What is not passed by a search of one job on SQLite that nothing disturbs.
ELSEWHERE = {
    "artifact.fsync", "artifact.unlink", "database.fsync", "database.mkdir", "lock.try_take",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with open_bench(tmp_path_factory.mktemp("kills"), keep=True, references=1) as opened:
        yield opened


@pytest.fixture
def home(bench: Bench) -> Home:
    """Where an undisturbed search was run."""
    assert bench.points("one")
    folder = min(bench.folder.glob("one-*"), key=lambda path: int(path.name.removeprefix("one-")))
    return Home(folder, f"sqlite:///{folder}/mlruns/optuna.db", STUDY)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "plan"), [("one", ALONE), ("two", TOGETHER)])
def test_a_killed_search_leaves_what_an_undisturbed_one_leaves(
    bench: Bench, kind: str, plan: str
) -> None:
    kills = [Kill.parse(word) for word in plan.split()]
    outcome = bench.search(kind, kills)
    assert outcome.verdict() == "equal", outcome
    assert sorted(map(str, outcome.kills)) == sorted(map(str, kills)), "it came to all of them"


@pytest.mark.slow
def test_a_search_passes_the_points_that_the_benchmark_plants(bench: Bench) -> None:
    passed = {point.rpartition(".")[0] for point in bench.points("one")}
    assert {name for write in WRITES for name in write.names()} - passed <= ELSEWHERE
    assert len(bench.points("one")) > 40


DAMAGES = [
    ("mlflow.db", "DELETE FROM metrics WHERE key = 'loss/whole' AND step = 2", "metric loss/whole"),
    ("mlflow.db", "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan "
     "FROM metrics WHERE key = 'loss/whole' AND step = 2", "metric loss/whole"),
    ("mlflow.db", "UPDATE runs SET status = 'RUNNING' WHERE name LIKE '#1 %'", "run of trial 1 status"),
    ("optuna.db", "UPDATE trial_values SET value = value + 0.001", "trial 0 value"),
    ("optuna.db", "DELETE FROM trial_intermediate_values WHERE step = 2", "trial 0 reports"),
    ("checkpoints/x.checkpoint", b"x", "files checkpoints/x.checkpoint"),
    ("artifacts/x/model/y", b"x", "files artifacts/x/model/y"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "damage", "said"), DAMAGES)
def test_what_is_lost_doubled_or_left_over_is_a_difference(
    bench: Bench, home: Home, name: str, damage: str | bytes, said: str
) -> None:
    account, _ = bench.undisturbed["one"]
    assert differences(account_of(home), account) == []
    path = home.state / name
    before = path.read_bytes() if path.exists() else b""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(damage)
    try:
        assert any(said in line for line in differences(account_of(home), account))
    finally:
        path.write_bytes(before) if before else path.unlink()


def test_every_point_is_of_a_call_that_is_there() -> None:
    for write in WRITES:
        assert callable(getattr(pkgutil.resolve_name(write.owner), write.method))
    assert len(all_points()) > 60
