import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

from experiments.context import TrainingContext
from experiments.tracking.names import EXPERIMENT
from experiments.tracking.store import TrackingStore, existing_store
from speaker.common.errors import UserError
from speaker.common.signals import Interrupted
from speaker.model.classifier import SpeakerClassifier
from speaker.model.saved_model import load_model
from speaker.training.metrics import (
    ACCURACY_CROPS,
    ACCURACY_WHOLE,
    LOSS_WHOLE,
    OBJECTIVE,
    TRAIN_LOSS,
)
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult
from tests.helpers import TINY

ROW = {ACCURACY_WHOLE: 0.5, ACCURACY_CROPS: 0.25, LOSS_WHOLE: 1.5, TRAIN_LOSS: 2.5}


@pytest.fixture
def store(state: Path) -> TrackingStore:
    return TrackingStore(f"sqlite:///{state}/mlflow.db", clock=iter(range(1_000, 2_000)).__next__)


def test_a_run_holds_point_corpus_protocol_and_origin(
    store: TrackingStore, context: TrainingContext
) -> None:
    run = store.open_run("d16", {"preset": "p"})
    run.log_setup(TINY, context)
    run.log_setup(TINY, context)  # as a resumed trial does
    got = store.client.get_run(run.run_id)
    assert got.data.params == {name: str(value) for name, value in TINY.to_dict().items()}
    tags = got.data.tags
    assert tags["corpus"] == "tiny"
    assert tags["point"] == TINY.label()
    assert tags["corpus.digest"] == context.pack.digest
    assert tags["protocol.whole"] == "valid part of split 0, whole utterances, masked"
    assert tags["protocol.crops"].startswith("valid part of split 0, one crop of 128 frames")
    assert tags["device"] == "cpu"
    assert tags["config.fingerprint"] == TINY.fingerprint()
    (dataset,) = got.inputs.dataset_inputs
    assert dataset.dataset.name == "tiny"
    assert context.pack.digest.startswith(dataset.dataset.digest)
    assert json.loads(dataset.dataset.profile)["utterances"] == 60
    text = mlflow.artifacts.load_text(f"{got.info.artifact_uri}/config.json")
    assert text == TINY.to_json()


def test_rows_stand_once_when_a_trial_starts_over(store: TrackingStore) -> None:
    run = store.open_run("d16", {})
    run.log(4, ROW)
    run.log(8, ROW)
    again = store.open_run("d16", {}, run_id=run.run_id)
    for step in (4, 8, 12):
        again.log(step, ROW)
    rows = store.client.get_metric_history(run.run_id, OBJECTIVE)
    assert [(row.step, row.value) for row in rows] == [(4, 0.5), (8, 0.5), (12, 0.5)]
    assert rows[0].timestamp == 1_000_000


def test_the_result_is_metrics_and_a_model_that_loads(
    store: TrackingStore, context: TrainingContext, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = SpeakerClassifier(TINY, 40, 4)
    run = store.open_run("d16", {})
    result = TrialResult(
        Outcome.COMPLETE,
        steps=12,
        best_step=8,
        best=ROW,
        weights=model.state_dict(),
        parameters=3,
        seconds=2,
    )
    run.log_result(result, TINY, context)
    run.close("complete")
    got = store.client.get_run(run.run_id)
    assert got.data.metrics == {
        "best/whole": 0.5, "best/crops": 0.25, "total/parameters": 3.0, "total/seconds": 2.0,
    }  # fmt: skip
    assert (got.data.tags["best.loss"], got.data.tags["best.step"]) == ("1.5000", "8")
    folder = mlflow.artifacts.download_artifacts(
        f"{got.info.artifact_uri}/model", dst_path=str(tmp_path)
    )
    trained = load_model(Path(folder))
    assert torch.equal(trained.model.project.weight, model.project.weight)
    assert trained.speakers == context.corpus.speakers
    assert trained.corpus_digest == context.pack.digest


@pytest.mark.parametrize(
    ("state_name", "status"),
    [
        ("complete", "FINISHED"),
        ("pruned", "KILLED"),
        ("failed", "FAILED"),
        ("interrupted", "KILLED"),
    ],
)
def test_a_run_ends_visibly(store: TrackingStore, state_name: str, status: str) -> None:
    run = store.open_run("#7 d16 h2", {})
    assert store.client.get_run(run.run_id).info.status == "RUNNING"
    run.close(state_name, "because")
    got = store.client.get_run(run.run_id)
    assert got.info.status == status
    assert got.info.run_name == (
        "#7 d16 h2" if state_name == "complete" else f"#7 {state_name} d16 h2"
    )
    assert (got.data.tags["state"], got.data.tags["state.reason"]) == (state_name, "because")


def test_a_run_that_a_kill_left_half_closed_is_marked_once(store: TrackingStore) -> None:
    run = store.open_run("#7 d80 h1", {"study": "s"})
    run.close("pruned")
    store.client.update_run(run.run_id, status="RUNNING")
    (left,) = store.left_open("s")
    left.close("pruned")
    assert store.client.get_run(run.run_id).info.run_name == "#7 pruned d80 h1"


@pytest.mark.parametrize(
    ("error", "state_name"), [(Interrupted(2), "interrupted"), (KeyError("x"), "failed")]
)
def test_what_breaks_a_run_closes_it_and_passes_through(
    store: TrackingStore, error: BaseException, state_name: str
) -> None:
    run = store.open_run("d16", {})
    with pytest.raises(type(error)), run.guarded():
        raise error
    assert store.client.get_run(run.run_id).data.tags["state"] == state_name


def test_a_trial_without_a_score_leaves_no_model(
    store: TrackingStore, context: TrainingContext
) -> None:
    run = store.open_run("d16", {})
    run.log_result(TrialResult(Outcome.FAILED, "out of memory"), TINY, context)
    assert "weights.sha256" not in store.client.get_run(run.run_id).data.tags
    assert store.client.list_artifacts(run.run_id) == []


def test_a_study_is_opened_again(store: TrackingStore, context: TrainingContext) -> None:
    parent = store.open_study("s", "id", None, {"seed": "0"}, {}, context)
    for _ in range(2):
        assert store.open_study("s", "id", parent, {"seed": "0"}, {}, context) == parent
        store.close_study(parent, "complete")
    assert store.open_study("s", "id", None, {"seed": "0"}, {}, context) == parent, (
        "a worker died before the study knew of it"
    )


@pytest.mark.slow
def test_eight_processes_open_new_books_at_once(state: Path) -> None:
    uri = f"sqlite:///{state}/mlflow.db"
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        ids = pool.map(open_and_log, [uri] * 8)
    assert len(set(ids)) == 8
    store = TrackingStore(uri)
    assert len(store.runs("")) == 8
    experiment = store.client.get_experiment_by_name(EXPERIMENT)
    assert experiment.artifact_location == (state / "artifacts").as_uri()


def open_and_log(uri: str) -> str:
    run = TrackingStore(uri).open_run("many", {})
    run.log(1, ROW)
    run.close("complete")
    return run.run_id


def test_more_runs_than_a_page(store: TrackingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        store.open_run(f"r{number}", {})
    original = store.client.search_runs
    monkeypatch.setattr(
        store.client,
        "search_runs",
        lambda ids, text, view, _most, order, token: original(ids, text, view, 3, order, token),
    )
    assert [run.info.run_name for run in store.runs("")] == [f"r{number}" for number in range(7)]


@pytest.mark.slow
def test_a_store_that_is_not_there(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="there are no runs yet"):
        existing_store(None, state)
    with pytest.raises(UserError, match="does not answer"):
        TrackingStore("http://127.0.0.1:9")
    with pytest.raises(UserError, match="does not answer"):
        TrackingStore("nonsense://x")


def test_books_that_were_moved_are_refused(
    store: TrackingStore, state: Path, tmp_path: Path
) -> None:
    shutil.copytree(state, tmp_path / "copy")
    with pytest.raises(UserError, match="was moved or copied from there"):
        TrackingStore(f"sqlite:///{tmp_path}/copy/mlflow.db")
    assert store.runs("") == []


@pytest.mark.parametrize(
    "uri", ["http://localhost:port", "mysql://u:secret@h/d", "sqlite:////proc/none/x.db", ""]
)
def test_an_odd_uri_is_one_clear_line(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        TrackingStore(uri or f"sqlite:///{Path.cwd()}")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_resumed_training_may_not_change_its_point(
    store: TrackingStore, context: TrainingContext
) -> None:
    run = store.open_run("d16", {})
    run.log_setup(TINY, context)
    with pytest.raises(mlflow.exceptions.MlflowException):
        run.log_setup(replace(TINY, seed=1), context)
