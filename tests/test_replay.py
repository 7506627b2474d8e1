"""A run that is trained again from its record comes to the same, and what does not is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from experiments.context import TrainingContext
from experiments.replay import (
    Certificate,
    Verdict,
    contradiction,
    read_record,
    replay,
    validate,
)
from experiments.tracked_training import TrackedTraining
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from speaker.training.metrics import Metrics
from tests.helpers import STUDY, TINY, refused
from tests.models import other_corpus
from tests.warm import run_warm


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlruns")


@pytest.fixture(scope="module")
def store(place: Path) -> TrackingStore:
    return TrackingStore(f"sqlite:///{place}/mlflow.db")


def trained(store: TrackingStore, context: TrainingContext, stop_at: int = 0, **tags: Any) -> str:
    """Leave the run of a real training; return its id."""

    def listen(step: int, _metrics: Metrics) -> bool:
        return step == stop_at

    run = store.open_run(TINY.label(), tags)
    training = TrackedTraining(TINY, context, run, tell=lambda _result: None)
    training.train(listen, tqdm(disable=True))
    return run.run_id


def replayed(store: TrackingStore, run_id: str, context: TrainingContext) -> Certificate:
    return replay(read_record(store, run_id), context)


@pytest.mark.parametrize(("stop_at", "end", "steps"), [(0, "complete", 12), (4, "pruned", 4)])
def test_a_run_comes_to_equal_weights(
    store: TrackingStore, context: TrainingContext, stop_at: int, end: str, steps: int
) -> None:
    run_id = trained(store, context, stop_at)
    run = store.client.get_run(run_id)
    assert run.data.tags[names.STATE] == end
    found = replayed(store, run_id, context)
    assert (found.verdict, found.differs) == (Verdict.EQUAL, "")
    assert f"after {steps} steps" in found.words
    assert run.data.tags[names.SHA256] in found.words
    assert not list(context.checkpoints.glob("*"))


def test_another_hash_is_told(store: TrackingStore, context: TrainingContext) -> None:
    run_id = trained(store, context)
    store.tag_run(run_id, {names.SHA256: "0" * 64})
    found = replayed(store, run_id, context)
    assert found.verdict == Verdict.DIFFERENT
    assert "the weights differ" in found.words
    store.tag_run(run_id, {"version.torch": "0.1", "device": "cpu, 3 threads"})
    found = replayed(store, run_id, context)
    assert found.verdict == Verdict.CLOSE, "something differs that may explain it"
    assert "90 % interval" in found.words
    assert "version.torch is 0.1 there and none here" in found.differs
    assert "device is cpu, 3 threads there and cpu here" in found.differs


def test_metrics_out_of_bounds_are_told_whatever_else_differs(
    store: TrackingStore, context: TrainingContext
) -> None:
    run_id = trained(store, context)
    store.tag_run(run_id, {names.SHA256: "0" * 64, "version.torch": "0.1"})
    record = read_record(store, run_id)
    far = replace(record, whole=1.0 if record.whole < 0.5 else 0.0)
    found = replay(far, context)
    assert found.verdict == Verdict.DIFFERENT
    assert "version.torch" in found.differs


def test_another_end_is_told(store: TrackingStore, context: TrainingContext) -> None:
    run_id = trained(store, context)
    store.tag_run(run_id, {names.STATE: "collapsed"})
    found = replayed(store, run_id, context)
    assert found.verdict == Verdict.DIFFERENT
    assert "it ended as complete after 12 steps, not as collapsed" in found.words


def test_a_record_that_contradicts_itself_is_told(
    store: TrackingStore, context: TrainingContext, place: Path
) -> None:
    run_id = trained(store, context)
    record = read_record(store, run_id)
    assert contradiction(store, record) == ""
    (file,) = place.rglob(f"{run_id}/artifacts/config.json")
    file.write_text(file.read_text().replace('"lr": 0.001', '"lr": 0.002'))
    assert "config.json is not of its params: lr is 0.002 there and 0.001" in contradiction(
        store, record
    )
    file.write_text("{")
    assert "config.json holds no config" in contradiction(store, record)
    file.unlink()
    assert contradiction(store, record) == "", "the params say the same"
    store.tag_run(run_id, {names.FINGERPRINT: "0" * 12})
    assert "config.fingerprint is 000000000000, but" in contradiction(
        store, read_record(store, run_id)
    )


def test_what_cannot_be_trained_again_is_refused(
    store: TrackingStore, context: TrainingContext
) -> None:
    assert "there is no run" in refused(lambda: read_record(store, "0" * 32))
    study = store.open_study("s", "id", None, {}, {}, context)
    assert f"run {study} is a study" in refused(lambda: read_record(store, study))
    run_id = trained(store, context)
    for state in ("running", "interrupted", "failed", "infeasible"):
        store.tag_run(run_id, {names.STATE: state})
        assert f"is {state}; choose another" in refused(lambda: read_record(store, run_id))
    store.tag_run(run_id, {names.STATE: "complete"})
    record = read_record(store, run_id)
    assert "corpus.digest is" in refused(lambda: validate(record, other_corpus(context)))
    store.client.delete_tag(run_id, names.SHA256)
    words = refused(lambda: read_record(store, run_id))
    assert "only a run that kept its model" in words
    assert "lacks weights.sha256" in words
    store.client.delete_run(run_id)
    assert "there is no run" in refused(lambda: read_record(store, run_id))


def test_a_certificate_is_kept_and_said() -> None:
    found = Certificate(Verdict.CLOSE, "w", "device is a there and b here")
    assert found.describe() == "Equal metrics: w.\nNot as it was: device is a there and b here."
    assert found.tags("now") == {
        "replay": "equal metrics", "replay.words": "now: w",
        "replay.differs": "device is a there and b here",
    }  # fmt: skip


@pytest.mark.slow
def test_a_trial_of_two_jobs_is_replayed_from_the_shell(home: Path) -> None:
    words = ("search.py", "--data", "corpus", "--steps", "5", "--trials", "2", "--jobs", "2")
    done = run_warm(home, *words, "--fix", "d_model=80", "--fix", "num_layers=1")
    assert done.returncode == 0, done.stderr
    store = TrackingStore(f"sqlite:///{home}/mlruns/mlflow.db")
    first, *others = store.trial_runs(STUDY)
    run_id = first.info.run_id
    again = run_warm(home, "experiments", "replay", run_id)
    assert again.returncode == 0, again.stderr
    assert "again, from its record alone: 5 steps on cpu" in again.stdout
    assert (
        f"Equal weights: after 5 steps the weights have sha256 {first.data.tags[names.SHA256]}"
        in again.stdout
    )
    assert "are as they were" in again.stdout
    after = store.client.get_run(run_id)
    assert after.data.tags[names.REPLAY] == "equal weights"
    assert after.data.tags[names.REPLAY_DIFFERS] == "nothing"
    assert after.data.tags.items() > first.data.tags.items()
    assert (after.data.metrics, after.info.status) == (first.data.metrics, "FINISHED")
    assert len(store.trial_runs(STUDY)) == 1 + len(others), "it is no trial"

    (home / "corpus").rename(home / "moved")
    lost = run_warm(home, "experiments", "replay", run_id)
    assert lost.returncode == 2
    assert "say with --data" in lost.stderr
    assert run_warm(home, "experiments", "replay", run_id, "--data", "moved").returncode == 0
    (home / "moved" / "metadata.json").write_text(edited(home / "moved" / "metadata.json"))
    other = run_warm(home, "experiments", "replay", run_id, "--data", "moved")
    assert other.returncode == 2
    assert "corpus.digest is" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1

    store.tag_run(run_id, {names.FINGERPRINT: "0" * 12})
    altered = run_warm(home, "experiments", "replay", run_id)
    assert altered.returncode == 1, altered.stderr
    assert "\nDifferent: it was not trained, because config.fingerprint" in altered.stdout
    assert store.client.get_run(run_id).data.tags[names.REPLAY] == "different"


def edited(manifest: Path) -> str:
    """Return a manifest with an utterance less."""
    value = json.loads(manifest.read_text())
    next(iter(value["speakers"].values())).pop()
    return json.dumps(value)
