"""`python -m experiments compare`, on studies in a real store."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy
import torch
from mlflow.entities import Metric, Param

from experiments.__main__ import parser
from experiments.context import TrainingContext
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from speaker.training.metrics import OBJECTIVE, UTTERANCES_PER_S, hex_of, wilson
from tests.helpers import TINY, refused

UTTERANCES = 100
STEPS = 10


@dataclass(frozen=True)
class Books:
    """A store, and its runs: of study "s" by trial, of study "other" and of train_trial.py."""

    store: TrackingStore
    parent: str
    trials: list[str]
    elsewhere: str
    alone: str
    deleted: str


def leave_run(
    store: TrackingStore,
    context: TrainingContext,
    tags: dict[str, str],
    right: int,
    state: str = "complete",
    parent: str | None = None,
) -> str:
    """Leave a run that told the first `right` utterances; its depth grows with that."""
    number = int(tags.get(names.TRIAL, 9))
    config = TINY.replace(num_layers=1 + number, steps=STEPS, seed=number)
    run = store.open_run(f"#{number}", tags, parent)
    fields = [Param(key, str(value)) for key, value in config.to_dict().items()]
    kept = {**context.tags(), names.POINT: config.label(), **tags}
    hits = torch.arange(UTTERANCES) < right
    store.client.log_batch(run.run_id, params=fields)
    store.tag_run(run.run_id, {**kept, names.HITS: hex_of(hits)})
    accuracy = right / UTTERANCES
    rows = [Metric(OBJECTIVE, accuracy * step / STEPS, 1, step) for step in (STEPS // 2, STEPS)]
    for name, value in (
        (names.BEST_WHOLE, accuracy),
        (names.BEST_CROPS, accuracy / 2),
        (names.PARAMETERS, 1_000.0),
        (names.SECONDS, 12.5),
        *([(UTTERANCES_PER_S, 1_234.5)] if number != 2 else []),
    ):
        rows.append(Metric(name, value, 1, STEPS))
    store.client.log_batch(run.run_id, metrics=rows)
    run.close(state, "" if state == "complete" else f"why {number}")
    return run.run_id


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory, context: TrainingContext) -> Books:
    store = TrackingStore(f"sqlite:///{tmp_path_factory.mktemp('books')}/mlflow.db")
    parent = store.open_study("s", "s", None, {}, {}, context)
    store.open_study("empty", "empty", None, {}, {}, context)
    ends = [(20, "complete"), (57, "complete"), (60, "complete"), (30, "pruned")]
    trials = []
    for number, (right, state) in enumerate(ends):
        tags = {names.STUDY: "s", names.TRIAL: str(number)}
        tags |= {names.PRESET: "homework-baseline"} if number == 0 else {}
        trials.append(leave_run(store, context, tags, right, state, parent))
    race = store.open_study("race", "race", None, {}, {names.CONFIRMS: "s"}, context)
    tags = {names.STUDY: "race", names.TRIAL: "0", names.REPLICATE: "0"}
    leave_run(store, context, tags, 50, parent=race)
    far = store.open_study("other", "other", None, {}, {}, context)
    moved = {"corpus": "elsewhere", "corpus.digest": "f" * 64}
    store.tag_run(far, moved)
    tags = {names.STUDY: "other", names.TRIAL: "0", **moved}
    elsewhere = leave_run(store, context, tags, 99, parent=far)
    lost = store.open_study("lost", "lost", None, {}, {}, context)
    tags = {names.STUDY: "lost", names.TRIAL: "0"}
    leave_run(store, context, tags, 10, "collapsed", lost)
    alone = leave_run(store, context, {}, 40)
    deleted = leave_run(store, context, {}, 40)
    store.client.delete_run(deleted)
    champion = store.client.get_run(trials[2])
    store.client.create_registered_model(names.MODEL)
    version = store.client.create_model_version(
        names.MODEL, f"{champion.info.artifact_uri}/model", trials[2]
    )
    store.client.set_registered_model_alias(names.MODEL, names.CHAMPION, version.version)
    return Books(store, parent, trials, elsewhere, alone, deleted)


Said = Callable[..., tuple[str, str]]


@pytest.fixture
def say(books: Books, capsys: pytest.CaptureFixture[str]) -> Said:
    def call(*words: str) -> tuple[str, str]:
        """Return what the command prints, to stdout and to stderr."""
        arguments = parser().parse_args(["compare", *words, "--tracking-uri", books.store.uri])
        capsys.readouterr()
        arguments.run(arguments)
        said = capsys.readouterr()
        return said.out, said.err

    return call


def test_a_study_is_ranked_with_intervals_ties_and_the_homeworks_points(
    say: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = say("--study", "s", "--best", "2")[0].splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[1:4]] == ["1", "1", "3"]
    assert [line.split()[1] for line in lines[1:4]] == ["#2", "#1", "#0"]
    assert lines[4].split() == ["homework-baseline"]
    low, high = wilson(0.6, UTTERANCES)
    assert f"0.6000 ±{(high - low) / 2:.3f}".replace("±0", "±") in lines[1]
    assert lines[1].endswith(" -"), "no speed is kept"
    assert lines[2].endswith(" 1,234") or lines[2].endswith(" 1,235")
    assert any(line.startswith("Winner: #2") for line in lines)


def test_less_needed_columns_leave_a_narrow_terminal(
    say: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = say("--study", "s")[0].splitlines()
    assert max(map(len, lines)) <= 79
    assert "crops" in lines[0]
    assert "utterances/s" not in lines[0]
    monkeypatch.setenv("COLUMNS", "200")
    assert "utterances/s" in say("--study", "s")[0]


def test_programs_get_the_same_rows_in_full(say: Said, books: Books) -> None:
    text, notes = say("--study", "s", "--best", "2", "--csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["trial"], row["rank"]) for row in rows] == [("2", "1"), ("1", "1"), ("0", "3")]
    assert "Winner" in notes
    assert "Winner" not in text
    objects = json.loads(say("--study", "s", "--best", "2", "--json")[0])
    for row, thing in zip(rows, objects, strict=True):
        assert list(row) == list(thing)
        assert row == {name: "" if value is None else str(value) for name, value in thing.items()}
    winner = objects[0]
    assert winner["run_id"] == books.trials[2]
    assert winner["accuracy_whole"] == 0.6
    assert (winner["accuracy_whole_low"], winner["accuracy_whole_high"]) == pytest.approx(
        wilson(0.6, UTTERANCES)
    )
    assert winner["utterances_per_second"] is None
    assert objects[1]["utterances_per_second"] == 1_234.5
    assert (winner["seed"], winner["seeds"], winner["num_layers"]) == (2, 1, 3)
    table = say("--study", "s", "--best", "2", "--markdown")[0].splitlines()
    assert len(table) == 5
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == list(winner)


def test_what_is_not_complete_has_no_rank(say: Said) -> None:
    rows = json.loads(say("--study", "s", "--json")[0])
    assert [(row["trial"], row["rank"], row["state"]) for row in rows][-1] == (3, None, "pruned")
    assert rows[-1]["reason"] == "why 3"


def test_runs_of_one_corpus_are_ranked_and_tested(say: Said, books: Books) -> None:
    worse, best = books.trials[0], books.trials[2]
    text = say(worse, best)[0]
    lines = text.splitlines()
    assert lines[0].startswith("A  ")
    assert best in lines[0]
    assert worse in lines[1]
    assert "A and B: 40 utterances are right in A alone, 0 in B alone: more than luck" in text
    table = [line.split() for line in lines]
    assert ["num_layers", "3", "1"] in table
    assert ["seed", "2", "0"] in table
    assert not any(line[:1] == ["d_model"] for line in table), "it is the same"
    assert ["5", "0.3000", "0.1000"] in table
    assert ["10", "0.6000", "0.2000"] in table
    tied = say("--study", "s", "#2", "1")[0]
    assert "3 utterances are right in A alone, 0 in B alone: no more than luck explains" in tied
    assert [line.split()[1] for line in tied.splitlines() if line[:6] in ("A     ", "B     ")] == [
        "1",
        "1",
    ]


def test_runs_of_two_corpora_are_not_ranked(say: Said, books: Books) -> None:
    text, notes = say(books.trials[0], books.elsewhere)
    (why,) = (line for line in text.splitlines() if line.startswith("Not ranked"))
    assert why == (
        "Not ranked: these accuracies were measured on different corpora (tiny and elsewhere)."
    )
    assert "McNemar" not in text
    assert books.trials[0] in text.splitlines()[0], "they stay in their order"
    rows = json.loads(say(books.trials[0], books.elsewhere, "--json")[0])
    assert [row["rank"] for row in rows] == [None, None]
    assert notes == ""
    assert say(books.trials[0], books.elsewhere, "--json")[1].startswith("Not ranked")


def test_studies_stand_by_what_they_were_measured_on(say: Said) -> None:
    text = say()[0]
    first, second, why = text.strip().split("\n\n")
    assert first.startswith("corpus elsewhere")
    assert second.startswith("corpus tiny")
    assert "are not ranked together" in why
    lines = [line.split() for line in second.splitlines()[2:]]
    assert [line[0] for line in lines] == ["s", "race", "empty", "lost"]
    assert lines[0][-2:] == ["champion,", "confirmed"]
    assert lines[1][-2:] == ["confirms", "s"]
    things = {each["study"]: each for each in json.loads(say("--json")[0])}
    assert things["s"]["trials"] == 4
    assert things["s"]["complete"] == 3
    assert things["s"]["pruned"] == 1
    assert things["s"]["accuracy_whole"] == 0.6
    assert things["s"]["expected"] == pytest.approx(0.6, abs=0.06)
    assert things["s"]["confirmed_by"] == "race"
    assert [name for name, each in things.items() if each["has_champion"]] == ["s"]
    assert things["lost"]["accuracy_whole"] is None


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("{first}", "0" * 32), "there is no run 0{32} in"),
        (("{first}", "{first}"), "given once"),
        (("{first}",), "from 2 to 8 runs"),
        (("{first}",) * 9, "from 2 to 8 runs"),
        (("{first}", "{parent}"), "that of a whole study; see its trials with compare --study s"),
        (("{first}", "{deleted}"), "was deleted; restore it"),
        (("{first}", "x" * 500), r"called by its id, 32 hex digits, .* but got 'x{80}'$"),
        (("{first}", "../x"), "called by its id"),
        (("{first}", "2"), "called by its id"),
        (("--study", "s", "0", "7"), "study 's' has no trial #7"),
        (("--study", "s", "0", "{elsewhere}"), "is none of study 's'"),
        (("--study", "none"), "there is no study 'none'"),
        (("--study", "lost"), "study 'lost' has none: of 1 that ended 1 collapsed; .*why 0"),
        (("--study", "empty"), "study 'empty' has none"),
        (("--best", "3"), "--best is for the trials of a study"),
        (("--best", "3", "{first}", "{alone}"), "--best is for the trials of a study"),
    ],
    ids=str,
)
def test_bad_input_is_refused_in_a_line(
    say: Said, books: Books, words: tuple[str, ...], why: str
) -> None:
    known = {**vars(books), "first": books.trials[0]}
    said = refused(lambda: say(*(word.format(**known) for word in words)))
    assert re.search(why, said), said


def test_a_run_of_another_program_is_refused(say: Said, books: Books) -> None:
    client = books.store.client
    run = client.create_run(client.create_experiment("another"))
    assert "no trial of this program's" in refused(lambda: say(books.trials[0], run.info.run_id))


@pytest.mark.parametrize(
    "words", [("--best", "0"), ("--study", "x" * 101), ("--csv", "--json"), ("--study", "a/b")]
)
def test_bad_flags_are_refused_in_a_line(
    say: Said, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as stop:
        say(*words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 300


def test_a_store_without_studies_says_so(tmp_path: Path) -> None:
    store = TrackingStore(f"sqlite:///{tmp_path}/mlflow.db")
    arguments = parser().parse_args(["compare", "--tracking-uri", store.uri])
    assert "there is no study in" in refused(lambda: arguments.run(arguments))


def test_reading_a_study_takes_the_same_number_of_queries_however_long_it_is(
    books: Books,
) -> None:
    """A query a run made 1,000 trials take minutes on a server."""
    asked: list[str] = []
    engine = books.store.client._tracking_client.store.engine

    def note(*details: object) -> None:
        asked.append(str(details[2]))

    runs = books.store.trial_runs("s")
    sqlalchemy.event.listen(engine, "before_cursor_execute", note)
    try:
        first = books.store.curves(runs[:1])
        of_one = len(asked)
        found = books.store.curves(runs)
    finally:
        sqlalchemy.event.remove(engine, "before_cursor_execute", note)
    assert len(asked) == 2 * of_one
    assert first == {books.trials[0]: [(5, 0.1), (10, 0.2)]}
    assert {run_id: curve[-1] for run_id, curve in found.items()} == dict(
        zip(books.trials, [(10, 0.2), (10, 0.57), (10, 0.6), (10, 0.3)], strict=True)
    )
