from pathlib import Path

import pytest

from experiments.__main__ import parser
from experiments.context import TrainingContext
from experiments.report import page as pages
from experiments.report.publish import keep, make_report, publish
from experiments.report.study import read_study
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.training.metrics import OBJECTIVE
from tests.helpers import refused


@pytest.fixture
def store(state: Path, context: TrainingContext) -> TrackingStore:
    """A store with a study of two trials, as a search leaves them."""
    store = TrackingStore(f"sqlite:///{state}/mlflow.db")
    params = {"steps": "10", "space": "homework", "sampler": "tpe"}
    parent = store.open_study("s", "id", None, params, {"pruner": "none"}, context)
    for number, (end, whole) in enumerate([("complete", 0.5), ("pruned", 0.4)]):
        tags = {names.STUDY: "s", names.TRIAL: str(number), names.POINT: "d80 h2 L1 relu"}
        run = store.open_run(f"#{number} d80", tags, parent)
        run.log(5, {OBJECTIVE: whole})
        store.client.log_metric(run.run_id, names.BEST_WHOLE, whole)
        run.close(end, "behind" * (end == "pruned"))
    store.close_study(parent, "complete")
    return store


def described(store: TrackingStore) -> str:
    return str(store.study_runs("s")[0].data.tags.get(names.DESCRIPTION))


def test_a_study_is_read_with_what_its_run_says(
    store: TrackingStore, context: TrainingContext
) -> None:
    study = read_study(store, "s")
    assert [row.state for row in study.rows] == ["complete", "pruned"]
    assert study.tags["corpus.digest"] == context.pack.digest
    assert (study.params["steps"], study.tags["pruner"]) == ("10", "none")
    assert study.confirmation is None
    with pytest.raises(UserError, match="there is no study 'none'"):
        read_study(store, "none")


def test_the_page_lies_with_the_studys_run_and_is_linked(store: TrackingStore) -> None:
    report, address = make_report(store, "s"), publish(store, "s")
    assert Path(address.removeprefix("file://")).read_text() == report.page
    run_id = store.study_runs("s")[0].info.run_id
    assert [each.path for each in store.client.list_artifacts(run_id)] == [names.REPORT]
    said, _, link = described(store).rpartition("\n\n")
    assert said.startswith("#0 (d80 h2 L1 relu) won: it had 0.500")
    assert link.endswith(f"/runs/{run_id}/artifacts/report.html)")
    assert make_report(store, "s") == report
    assert keep(store, report) == address, "and may be written again"


def test_a_description_that_somebody_wrote_stays(store: TrackingStore) -> None:
    publish(store, "s")
    run_id = store.study_runs("s")[0].info.run_id
    store.tag_run(run_id, {names.DESCRIPTION: "old\n\n" + described(store).rpartition("\n\n")[2]})
    publish(store, "s")
    assert described(store).startswith("#0 (d80"), "ours is brought up to date"
    store.tag_run(run_id, {names.DESCRIPTION: f"{described(store)} I doubt it."})
    publish(store, "s")
    assert described(store).endswith("I doubt it.")


def test_a_report_that_fails_costs_a_line_and_no_search(
    store: TrackingStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(store, "s").endswith("report.html")
    assert capsys.readouterr().err == ""

    def fail(_study: object) -> str:
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr(pages, "render", fail)
    assert publish(store, "s") == ""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the study is whole, but its report was not written (no fonts)")
    assert "python -m experiments report --study s" in line


def test_the_verb_writes_a_file_and_refuses_in_a_line(
    store: TrackingStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def verb(*words: str) -> None:
        arguments = parser().parse_args(["report", "--tracking-uri", store.uri, *words])
        arguments.run(arguments)

    verb("--study", "s")
    assert Path("s.html").read_text() == make_report(store, "s").page
    verb("--study", "s", "--out", "s.html")
    assert "there is no study 'none'" in refused(lambda: verb("--study", "none"))
    assert "make the folder first" in refused(lambda: verb("--study", "s", "--out", "no/x.html"))
    Path("notes.txt").write_text("mine")
    assert "holds something else" in refused(lambda: verb("--study", "s", "--out", "notes.txt"))
    assert Path("notes.txt").read_text() == "mine"

    def fail(*_: object) -> str:
        raise OSError("disk full")

    capsys.readouterr()
    monkeypatch.setattr(TrackingStore, "log_report", fail)
    verb("--study", "s")
    assert capsys.readouterr().err == f"warning: {store.shown} did not take it (disk full)\n"
