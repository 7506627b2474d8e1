from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow.entities import Param

from experiments.analysis.answer import describe_answer
from experiments.analysis.leaderboard import Row, _judge, agreement, best_runs, ranked
from experiments.analysis.table import table
from experiments.context import TrainingContext
from experiments.tracking import names
from experiments.tracking.names import BEST_CROPS, BEST_WHOLE
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.training.metrics import OBJECTIVE, hex_of
from tests.helpers import TINY

ROW = Row("id", "0", "d80 h2 L1 sigmoid", "complete", "", "", 0.5, 0.4, 125_896, 1_620.0)


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
    store.client.set_tag(rows[0].run_id, "point", "d80\n\x1b[2J")
    assert ranked(store, "s")[0].point == r"d80\n\x1b[2J", "whatever stands there is one line"


def test_what_collapsed_says_nothing_of_its_neighbours() -> None:
    hits = (True, False) * 10
    rows = [
        replace(
            ROW,
            run_id=str(layers),
            trial=str(layers),
            values={"num_layers": layers},
            whole=0.4 + layers / 20,
            curve=((0.2, 0.2), (0.6, 0.3), (1.0, 0.4 + layers / 20)),
            hits=hits,
        )
        for layers in range(1, 6)
    ]
    low = replace(rows[2], run_id="x", trial="9", curve=((0.2, 0.01), (0.4, 0.0)), hits=())
    told = _judge([*rows, replace(low, state="collapsed")])
    assert [row.expected for row in told[:-1]] == [row.expected for row in _judge(rows)]
    assert told[-1].expected is None
    pruned = _judge([*rows, replace(low, state="pruned")])
    assert [row.expected for row in pruned[:-1]] != [row.expected for row in told[:-1]]


def test_the_table_shows_the_best_and_the_homeworks_points() -> None:
    rows = [
        replace(ROW, trial=str(number), whole=0.9 - number / 100, values={"lr": number})
        for number in range(9)
    ]
    rows[7] = replace(rows[7], preset="homework-baseline")
    rows.append(replace(ROW, trial="9", state="failed", whole=None, crops=None))
    lines = table(rows, best=2).splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) < 80
    assert lines[0].split() == [
        "rank",
        "trial",
        "point",
        "expected",
        "whole",
        "90",
        "%",
        "crops",
        "parameters",
        "seconds",
    ]
    assert lines[1].split() == [
        "1",
        "#0",
        "d80",
        "h2",
        "L1",
        "sigmoid",
        "-",
        "0.9000",
        "-",
        "0.4000",
        "125,896",
        "1620.0",
    ]
    assert lines[3].split()[0] == "8"
    assert lines[4].split() == ["homework-baseline"]
    last = table(rows, best=10).splitlines()[-1].split()
    assert (last[0], last[1], last[6:10]) == ("-", "#9", ["failed", "-", "-", "-"])


def leave_trial(
    store: TrackingStore,
    parent: str,
    number: int,
    hits: list[bool],
    steps: int = 10,
    state: str = "complete",
) -> None:
    """Leave a run as a trial does that was right on these of the validation utterances."""
    accuracy = sum(hits) / len(hits)
    tags = {names.STUDY: "s", names.TRIAL: str(number), names.HITS: hex_of(torch.tensor(hits))}
    run = store.open_run(f"#{number}", tags, parent)
    point = TINY.replace(num_layers=1 + number, steps=steps)
    store.client.log_batch(
        run.run_id, params=[Param(key, str(value)) for key, value in point.to_dict().items()]
    )
    for step in (steps // 2, steps):
        store.client.log_metric(run.run_id, OBJECTIVE, accuracy * step / steps, step=step)
    store.client.log_metric(run.run_id, BEST_WHOLE, accuracy)
    store.client.log_metric(run.run_id, names.PARAMETERS, 100 * (1 + number))
    store.client.log_metric(run.run_id, names.SECONDS, 9.0 - number)
    run.close(state)


def test_the_answer_says_how_sure_it_is_and_what_equals_the_winner(
    state: Path, context: TrainingContext
) -> None:
    store = TrackingStore(f"sqlite:///{state}/mlflow.db")
    parent = store.open_study("s", "id", None, {}, {}, context)
    right = [number < 60 for number in range(100)]
    nearly = [number < 57 for number in range(100)]
    worse = [number < 20 for number in range(100)]
    for number, hits in enumerate((worse, nearly, right)):
        leave_trial(store, parent, number, hits)
    leave_trial(store, parent, 3, nearly, state="pruned")
    rows = ranked(store, "s")
    assert [row.trial for row in rows] == ["2", "1", "0", "3"]
    assert [row.is_tied for row in rows] == [True, True, False, False]
    first = rows[0].expected
    assert first is not None
    assert first.mean == pytest.approx(0.6, abs=0.06)
    low, high = first.interval()
    assert low < first.mean < high
    assert high - low > 0.1, "a hundred utterances do not say more"
    assert [line.split()[0] for line in table(rows, best=5).splitlines()[1:]] == [
        "1",
        "1",
        "3",
        "-",
    ]
    answer = " ".join(describe_answer(rows).split())
    assert "Winner: #2" in answer
    assert "it had 0.6000 on 100 validation utterances" in answer
    assert (
        "cannot tell it from 1 of the 2 other complete trials (McNemar's test, p > 0.1): #1."
        in answer
    )
    assert "the smallest is #1" in answer
    assert "the quickest #2" in answer
    assert best_runs(store, "s", 1) == [rows[0].run_id]


def test_runs_of_older_versions_are_ranked_by_what_they_scored(
    state: Path, context: TrainingContext
) -> None:
    store = TrackingStore(f"sqlite:///{state}/mlflow.db")
    parent = store.open_study("s", "id", None, {}, {}, context)
    leave_trial(store, parent, 0, [True, False])
    run = store.open_run("#1", {names.STUDY: "s", names.TRIAL: "1"}, parent)
    store.client.log_metric(run.run_id, BEST_WHOLE, 0.9)
    run.close("complete")
    rows = ranked(store, "s")
    assert [row.trial for row in rows] == ["1", "0"]
    assert [row.expected for row in rows] == [None, None]
    assert describe_answer(rows) == ""


def test_agreement_is_the_correlation_of_hits() -> None:
    one = tuple([True] * 30 + [False] * 30)
    assert agreement([one, one]) == pytest.approx(1)
    assert agreement([one, tuple(not hit for hit in one)]) == 0
    assert agreement([one]) == agreement([(True,) * 9, (True,) * 9]) == 0
