import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import promotion
from experiments.context import TrainingContext
from experiments.promotion import Request
from experiments.registry.versions import download_model, find_version
from experiments.tracking.names import CHAMPION, MODEL
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.model.saved_model import load_model
from tests.models import finished_run

ALONE = """
import sys, json, numpy, mlflow
uri, inputs, outputs = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model("models:/speaker-classifier@champion")
batches = numpy.load(inputs)
count = len(batches.files) // 2
answers = [model.predict({"mels": batches[f"mels{i}"], "lengths": batches[f"lengths{i}"]}) for i in range(count)]
numpy.savez(outputs, **{f"{key}{i}": answer[key] for i, answer in enumerate(answers) for key in answer})
assert not [name for name in sys.modules if name.split(".")[0] in ("speaker", "experiments", "tests")]
"""


@pytest.fixture
def store(state: Path) -> TrackingStore:
    return TrackingStore(f"sqlite:///{state}/mlflow.db")


def promote(store: TrackingStore, run_id: str) -> str:
    return promotion.promote(store, run_id, Request("2026-11-28 04:00:00 UTC"))


def test_a_version_is_copied_out_with_its_origin(
    store: TrackingStore, context: TrainingContext, tmp_path: Path
) -> None:
    assert find_version(store, CHAMPION) is None
    first, _ = finished_run(store, context, 0, "111000")
    ended = store.client.get_run(first).info
    promote(store, first)
    second, model = finished_run(store, context, 1, "111111")
    promotion.promote(store, second, Request("2026-11-28 04:00:00 UTC", reason="a test"))
    assert store.client.get_run(first).info.end_time == ended.end_time, (
        "promotion must not touch the run"
    )
    assert (
        download_model(store, CHAMPION, tmp_path / "champion") == "version 2 of speaker-classifier"
    )
    trained = load_model(tmp_path / "champion")
    assert torch.equal(trained.model.project.weight, model.project.weight)
    assert download_model(store, "1", tmp_path / "one") == "version 1 of speaker-classifier"
    assert download_model(store, first, tmp_path / "run") == f"run {first}"
    assert load_model(tmp_path / "run").source == {"run": first, "store": store.shown}
    assert trained.source["version"] == "2"
    assert (tmp_path / "one" / "config.json").read_text() == (
        tmp_path / "run" / "config.json"
    ).read_text()


@pytest.mark.parametrize("name", ["challenger", "7", "0" * 32, "v1", "x@y=(z)"])
def test_an_unknown_model_is_one_clear_line(
    store: TrackingStore, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError) as caught:
        download_model(store, name, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_weights_that_changed_in_the_store_are_refused(
    store: TrackingStore, context: TrainingContext, tmp_path: Path
) -> None:
    run_id, _ = finished_run(store, context, 0, "111000")
    promote(store, run_id)
    for file in (tmp_path / "mlruns" / "artifacts").rglob("weights.safetensors"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    for name in (CHAMPION, run_id):
        with pytest.raises(UserError, match="must have sha256"):
            download_model(store, name, tmp_path / "model")


@pytest.mark.parametrize("state_name", ["pruned", "failed", "interrupted"])
def test_only_complete_runs_are_promoted(
    store: TrackingStore, context: TrainingContext, state_name: str
) -> None:
    run_id, _ = finished_run(store, context, 0, "111000")
    store.open_run("#0 d16", {}, run_id=run_id).close(state_name)
    with pytest.raises(UserError, match="only a complete trial's run"):
        promote(store, run_id)


def test_a_model_whose_files_are_gone_is_one_clear_line(
    store: TrackingStore, context: TrainingContext, tmp_path: Path
) -> None:
    run_id, _ = finished_run(store, context, 0, "111000")
    promote(store, run_id)
    shutil.rmtree(tmp_path / "mlruns" / "artifacts")
    for name in (CHAMPION, run_id):
        with pytest.raises(UserError, match="files cannot be read"):
            download_model(store, name, tmp_path / "model")


@pytest.mark.slow
def test_mlflow_alone_gets_the_same_answers(
    store: TrackingStore, context: TrainingContext, tmp_path: Path
) -> None:
    """In a process whose path holds none of this project's code, for several lengths and batches."""
    run_id, model = finished_run(store, context, 0, "111000")
    promote(store, run_id)
    draw = np.random.default_rng(0)
    shapes = [(1, 1), (1, 50), (3, 128), (2, 700), (5, 2)]
    inputs: dict[str, Any] = {}
    for i, (batch, frames) in enumerate(shapes):
        inputs[f"mels{i}"] = draw.normal(size=(batch, frames, 40)).astype(np.float32)
        inputs[f"lengths{i}"] = draw.integers(1, frames + 1, size=batch)
    np.savez(tmp_path / "inputs.npz", **inputs)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", ALONE, store.uri, tmp_path / "inputs.npz", tmp_path / "outputs.npz"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "outputs.npz")
    for i in range(len(shapes)):
        with torch.no_grad():
            logits = model(
                torch.from_numpy(inputs[f"mels{i}"]), torch.from_numpy(inputs[f"lengths{i}"])
            )
        np.testing.assert_allclose(
            outputs[f"probabilities{i}"], logits.softmax(1).numpy(), atol=1e-6
        )
        expected = [context.corpus.speakers[choice] for choice in logits.argmax(1).tolist()]
        assert outputs[f"speaker{i}"].tolist() == expected


def test_the_registered_model_carries_its_signature_and_origin(
    store: TrackingStore, context: TrainingContext
) -> None:
    run_id, _ = finished_run(store, context, 0, "111000")
    promote(store, run_id)
    version = store.client.get_model_version_by_alias(MODEL, CHAMPION)
    assert version.run_id == run_id
    assert version.tags["corpus"] == "tiny"
    assert "corpus.digest" not in version.tags, "the run has it"
    assert version.tags["best/whole"] == "0.5000"
    (file,) = Path(
        store.client.get_model_version_download_uri(MODEL, version.version).removeprefix("file://")
    ).glob("MLmodel")
    text = file.read_text()
    assert "mels" in json.dumps(text)
    assert "torch==" in (file.parent / "requirements.txt").read_text()
