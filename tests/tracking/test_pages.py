"""The pages that are linked to, asked for as the UI asks, and seen in a browser where there is one."""

import json
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import mlflow
import pytest

from experiments.context import TrainingContext
from experiments.tracking import names
from experiments.tracking.descriptions import SEARCHING
from experiments.tracking.pages import VIEW, describe_search, save_leaderboards, view
from experiments.tracking.store import TrackingStore
from experiments.verbs.ui import answers, links, serving
from speaker.config import TrialConfig
from tests.browser import needs_chromium, seen
from tests.servers import free_port

BEST_FIRST = ["#1 d80", "#3 d80", "#0 d80", "#2 pruned d80"]
SPACE = {"space.d_model": "one of 80, 512", "space.lr": "from 1e-4 to 1e-2, log"}


@pytest.fixture
def store(state: Path, context: TrainingContext) -> TrackingStore:
    """A store with a study of four trials, one of them stopped, and another study."""
    store = TrackingStore(f"sqlite:///{state}/mlflow.db")
    scores = {"s": ((0.5, "complete"), (0.75, "complete"), (0.25, "pruned"), (0.625, "complete")),
              "other": ((0.9, "complete"),)}  # fmt: skip
    for study, trials in scores.items():
        parent = store.open_study(study, study, None, SPACE, {}, context)
        for number, (whole, end) in enumerate(trials):
            tags = {names.STUDY: study, names.TRIAL: str(number)}
            run = store.open_run(f"#{number} d80", tags, parent)
            run.log_setup(TrialConfig(seed=number), context)
            store.client.log_metric(run.run_id, names.BEST_WHOLE, whole)
            run.close(end)
        store.client.log_metric(parent, names.BEST_WHOLE, 0.99)
        store.close_study(parent, "complete")
    return store


def state_of(store: TrackingStore, study: str) -> dict[str, object]:
    tag = store.client.get_experiment(store.experiment_id).tags[VIEW + study]
    found: dict[str, object] = json.loads(json.loads(tag)["state"])
    return found


def named(store: TrackingStore, facets: dict[str, object]) -> list[str]:
    """Return the runs that the UI's table asks the server for, by name."""
    up = "ASC" if facets["orderByAsc"] in (True, "true") else "DESC"
    plain = mlflow.MlflowClient(store.uri)
    found = plain.search_runs(
        [store.experiment_id],
        str(facets["searchFilter"]),
        order_by=[f"{facets['orderByKey']} {up}"],
    )
    return [run.info.run_name for run in found]


def test_a_view_and_a_link_show_the_best_trials_first(store: TrackingStore) -> None:
    other, board = save_leaderboards(store)
    assert (other.study, board.study) == ("other", "s")
    state = state_of(store, "s")
    assert named(store, state) == BEST_FIRST
    query = parse_qs(urlsplit(board.plain.removeprefix("#")).query)
    assert named(store, {name: value for name, (value,) in query.items()}) == BEST_FIRST
    assert query["workflowType"] == ["machine_learning"]
    assert state["selectedColumns"] == [
        "metrics.`best/whole`", "metrics.`best/crops`", "params.`d_model`", "params.`lr`",
        "tags.`state`", "metrics.`total/seconds`", "metrics.`total/parameters`",
    ]  # fmt: skip
    assert state["columnOrder"] == ["attributes.`Run Name`", *state["selectedColumns"]]


def test_what_stands_there_is_not_written_again(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save_leaderboards(store)
    monkeypatch.setattr(store.client, "set_experiment_tag", None)
    assert save_leaderboards(store) == first


def test_an_old_studys_view_sorts_by_the_name_it_was_written_with(
    store: TrackingStore, context: TrainingContext
) -> None:
    parent = store.open_study("old", "old", None, {}, {}, context)
    for number, whole in enumerate((0.25, 0.5)):
        run = store.open_run(f"#{number}", {names.STUDY: "old", names.TRIAL: str(number)}, parent)
        store.client.log_metric(run.run_id, "best/accuracy_whole", whole)
    save_leaderboards(store, "old")
    state = state_of(store, "old")
    assert named(store, state) == ["#1", "#0"]
    assert "params.`nhead`" in str(state["selectedColumns"])


def test_descriptions_link_to_the_trials_and_what_somebody_wrote_stays(
    store: TrackingStore,
) -> None:
    parent = store.study_runs("s")[0].info.run_id
    describe_search(store, parent, SEARCHING)
    text = store.client.get_run(parent).data.tags[names.DESCRIPTION]
    assert text.startswith("This search has not ended, or was cut off")
    assert "Measured on 6 validation utterances of the corpus tiny; guessing among 4" in text
    assert "promote --study s" in text
    experiment = store.client.get_experiment(store.experiment_id)
    assert "- [s](#/experiments/1/runs?viewStateShareKey=s&" in experiment.tags[names.DESCRIPTION]
    assert "[other]" not in experiment.tags[names.DESCRIPTION], "its view is not saved yet"
    describe_search(store, parent, "Again.")
    assert store.client.get_run(parent).data.tags[names.DESCRIPTION].startswith("Again.")
    store.tag_run(parent, {names.DESCRIPTION: f"{text}\nMine."})
    store.client.set_experiment_tag(store.experiment_id, names.DESCRIPTION, "Mine.")
    describe_search(store, parent, "Once more.")
    save_leaderboards(store)
    assert store.client.get_run(parent).data.tags[names.DESCRIPTION].endswith("Mine.")
    assert store.client.get_experiment(store.experiment_id).tags[names.DESCRIPTION] == "Mine."


def test_a_view_is_what_mlflow_takes_for_one() -> None:
    envelope = json.loads(view("s", ["lr"], {}, 5))
    assert {type(envelope[name]) for name in ("name", "state")} == {str}
    assert (envelope["createdAt"], envelope["updatedAt"]) == (5, 5)


class Table(HTMLParser):
    """The cells of the UI's table: texts by row and column."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: dict[tuple[int, str], str] = {}
        self._at = -1, ""
        self.feed(page)

    def handle_starttag(self, _tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if "row-index" in found:
            self._at = int(found["row-index"] or -1), ""
        if "col-id" in found:
            self._at = self._at[0], found["col-id"] or ""

    def handle_data(self, data: str) -> None:
        self.cells[self._at] = self.cells.get(self._at, "") + data.strip()

    def column(self, name: str) -> list[str]:
        return [text for (row, column), text in sorted(self.cells.items())
                if row >= 0 and column == name]  # fmt: skip


@pytest.fixture
def server(store: TrackingStore) -> Iterator[str]:
    """The address of a real server of the store."""
    port = free_port()
    with serving(store.uri, port) as process:
        while process.poll() is None and not answers(port):
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"


@pytest.mark.slow
@needs_chromium
def test_the_first_link_shows_accuracies_in_a_browser(
    store: TrackingStore, server: str, tmp_path: Path
) -> None:
    saved, plain, other, models = (line.split(": ")[1] for line in links(store, server).split("\n"))
    assert "viewStateShareKey=other" in saved
    table = Table(seen(other, tmp_path))
    whole = table.column("metrics.`best/whole`")
    assert whole == ["0.75", "0.625", "0.5", "0.25"]
    for shown, name in zip(table.column("attributes.`Run Name`"), BEST_FIRST, strict=True):
        assert shown.endswith(name)  # behind the code of its colour
    assert table.column("params.`d_model`") == ["80"] * 4
    assert table.column("tags.`state`") == ["complete", "complete", "complete", "pruned"]
    (shown,) = Table(seen(plain, tmp_path)).column("attributes.`Run Name`")
    assert shown.endswith("#0 d80")
    assert "Model Registry" in seen(models, tmp_path)
