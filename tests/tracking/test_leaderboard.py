from dataclasses import replace
from pathlib import Path

import pytest

from experiments.context import TrainingContext
from experiments.tracking.leaderboard import Row, ranked, table
from experiments.tracking.names import BEST_CROPS, BEST_WHOLE
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError

ROW = Row("id", "0", "d80 h2 L1 sigmoid", "complete", "", 0.5, 0.4, 125_896, 1_620.0)


def test_complete_trials_are_ranked_by_whole_utterances(
    state: Path, context: TrainingContext
) -> None:
    store = TrackingStore(f"sqlite:///{state}/mlflow.db")
    parent = store.open_study("s", "id", None, {}, {}, context)
    endings = [
        ("complete", 0.4, 0.9),
        ("pruned", 0.9, 0.9),
        ("complete", 0.6, 0.1),
        ("complete", 0.6, 0.2),
    ]
    for number, (state_name, whole, crops) in enumerate(endings):
        run = store.open_run(
            f"#{number} d80 h2 L1 relu", {"study": "s", "trial": str(number)}, parent
        )
        for name, value in ((BEST_WHOLE, whole), (BEST_CROPS, crops)):
            store.client.log_metric(run.run_id, name, value)
        store.client.set_tag(run.run_id, "point", "d80 h2 L1 relu")
        run.close(state_name)
    store.open_run("#4 d80 h2 L1 relu", {"study": "s", "trial": "4"}, parent)  # still running
    store.open_run("#0 other", {"study": "t", "trial": "0"}).close("complete")
    rows = ranked(store, "s")
    assert [row.trial for row in rows] == ["2", "3", "0", "1"]
    assert rows[0].point == "d80 h2 L1 relu"
    with pytest.raises(UserError, match="there is no study 'none'"):
        ranked(store, "none")


def test_the_table_shows_the_best_and_the_homeworks_points() -> None:
    rows = [replace(ROW, trial=str(number), whole=0.9 - number / 100) for number in range(9)]
    rows[7] = replace(rows[7], preset="homework-baseline")
    rows.append(replace(ROW, trial="9", state="failed", whole=None, crops=None))
    lines = table(rows, best=2).splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["rank", "trial", "point", "whole", "crops", "parameters", "seconds"]
    assert lines[1].split() == [
        "1",
        "#0",
        "d80",
        "h2",
        "L1",
        "sigmoid",
        "0.9000",
        "0.4000",
        "125,896",
        "1620.0",
    ]
    assert lines[3].split()[0] == "8"
    assert lines[3].endswith("homework-baseline")
    assert "-      -" in table(rows, best=10).splitlines()[-1]
    assert table(rows, best=10).endswith("failed")
