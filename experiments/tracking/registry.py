"""The MLflow registry: promote a run to champion, and download a model from there."""

import json
import re
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from experiments.tracking.names import (
    BEST_CROPS,
    BEST_WHOLE,
    CHAMPION,
    MODEL,
    MODEL_FOLDER,
    POINT,
    PRESET,
    SHA256,
    STATE,
    STUDY,
    TRIAL,
)
from experiments.tracking.run import STORE_ERRORS
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.common.files import sha256_file, write_atomically
from speaker.model.saved_model import CARD, CONFIG, SOURCE, WEIGHTS, TrainedModel, load_model

PROGRAM = "program.pt2"
DECISIVE_TAGS = ("corpus.digest", "protocol.whole")  # those of comparable accuracies
CARRIED_TAGS = (
    STUDY,
    TRIAL,
    PRESET,
    "corpus",
    "corpus.digest",
    "protocol.whole",
    "protocol.crops",
    SHA256,
)


@dataclass(frozen=True)
class Promotion:
    """What a promotion changed; `before` is None when there was no champion."""

    before: ModelVersion | None
    after: ModelVersion

    def describe(self) -> str:
        """Return it in words."""
        lines = [f"{CHAMPION} of {MODEL} is version {self.after.version}: {_describe(self.after)}"]
        if self.before is None:
            lines.append("There was none before.")
        elif self.before.version == self.after.version:
            lines.append("It was before, too: nothing changed.")
        else:
            lines.append(f"Before, it was version {self.before.version}: {_describe(self.before)}")
            comparable = all(
                self.before.tags.get(tag) == self.after.tags.get(tag) for tag in DECISIVE_TAGS
            )
            if not comparable:
                lines.append(
                    "The two were measured on different corpora or protocols: their accuracies do "
                    "not compare."
                )
        return "\n".join(lines)


def promote(store: TrackingStore, run_id: str) -> Promotion:
    """Register a run's model as a new version, if it is not one yet,
    and give it the alias `champion`.
    """
    client = store.client
    run = _run(store, run_id)
    before = find_version(store, CHAMPION)
    if not client.search_registered_models(f"name = '{MODEL}'"):
        client.create_registered_model(MODEL, description="Names the speaker of log-mel features.")
    known = client.search_model_versions(f"name = '{MODEL}' and run_id = '{run_id}'")
    after = max(known, key=lambda each: int(each.version)) if known else _register(store, run)
    client.set_registered_model_alias(MODEL, CHAMPION, after.version)
    return Promotion(before, client.get_model_version(MODEL, after.version))


def find_version(store: TrackingStore, name: str) -> ModelVersion | None:
    """Return the registered version called by an alias or a number, or None."""
    try:
        if name.isdecimal():
            return store.client.get_model_version(MODEL, name)
        return store.client.get_model_version_by_alias(MODEL, name)
    except MlflowException:
        return None


def download_model(store: TrackingStore, name: str, folder: Path) -> str:
    """Copy the model called by an alias, a version or a run id into `folder`;
    return what it is, in words.

    Only data is copied, and its sha256 is that of the run that made it; a file beside it says which
    that was. Raises UserError when there is no such model.
    """
    with tempfile.TemporaryDirectory() as temporary:
        found = find_version(store, name)
        if found is not None:
            uri = store.client.get_model_version_download_uri(MODEL, found.version)
            source = _download(store, uri, temporary) / "artifacts"
            expected, words = found.tags[SHA256], f"version {found.version} of {MODEL}"
            origin = {"model": MODEL, "version": str(found.version), "run": found.run_id}
        elif re.fullmatch("[0-9a-f]{32}", name):
            run = _run(store, name)
            source = _download(store, f"{run.info.artifact_uri}/{MODEL_FOLDER}", temporary)
            expected, words = run.data.tags[SHA256], f"run {name}"
            origin = {"run": name}
        else:
            raise UserError(
                f"--model must be an alias or version of {MODEL}, a run id or a folder, but "
                f"{name!r} is none in {store.shown}; promote a study first: python -m experiments "
                "promote --study NAME"
            )
        if sha256_file(source / WEIGHTS) != expected:
            raise UserError(
                f"the weights of {words} must have sha256 {expected}, but have another; promote "
                "them again"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for file in (WEIGHTS, CONFIG, CARD):
            shutil.copyfile(source / file, folder / file)
        write_atomically(
            folder / SOURCE, json.dumps({**origin, "store": store.shown}, indent=1).encode()
        )
    return words


def _register(store: TrackingStore, run: Run) -> ModelVersion:
    """Log a run's model so that plain MLflow can serve it, and register that as a new version."""
    client = store.client
    tags = {tag: run.data.tags[tag] for tag in CARRIED_TAGS if tag in run.data.tags}
    tags |= {key: f"{run.data.metrics[key]:.4f}" for key in (BEST_WHOLE, BEST_CROPS)}
    with tempfile.TemporaryDirectory() as temporary:
        fetched, served = Path(temporary, "fetched"), Path(temporary, "served")
        download_model(store, run.info.run_id, fetched)
        _save_served(load_model(fetched), fetched, served)
        logged = client.create_logged_model(
            run.info.experiment_id, MODEL, run.info.run_id, tags=tags
        )
        client.log_model_artifacts(logged.model_id, str(served))
        client.finalize_logged_model(logged.model_id, "READY")
    source = f"models:/{logged.model_id}"
    return client.create_model_version(
        MODEL,
        source,
        run.info.run_id,
        tags,
        description=run.data.tags[POINT],
        model_id=logged.model_id,
    )


def _save_served(trained: TrainedModel, fetched: Path, folder: Path) -> None:
    """Write the pyfunc model: the exported program, the file that runs it,
    and the weights as plain data.
    """
    export_program(trained, fetched / PROGRAM)
    float32, int64, text = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.str_)
    mels = TensorSpec(float32, (-1, -1, trained.n_mels), "mels")
    inputs = Schema([mels, TensorSpec(int64, (-1,), "lengths")])
    probabilities = TensorSpec(float32, (-1, len(trained.speakers)), "probabilities")
    outputs = Schema([TensorSpec(text, (-1,), "speaker"), probabilities])
    artifacts = {"program": PROGRAM, "card": CARD, "weights": WEIGHTS, "config": CONFIG}
    # MLflow advises type hints, which it would take for a schema.
    with warnings.catch_warnings(record=True):
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={key: str(fetched / file) for key, file in artifacts.items()},
            signature=ModelSignature(inputs, outputs),
            input_example={
                "mels": np.zeros((2, 3, trained.n_mels), np.float32),
                "lengths": np.array([3, 2]),
            },
            pip_requirements=[
                f"{name}=={version(name).partition('+')[0]}"
                for name in ("mlflow", "numpy", "torch")
            ],
        )


def export_program(trained: TrainedModel, path: Path) -> None:
    """Write a model as a torch.export program of (mels, lengths), both sizes dynamic from 1 up."""
    batch, frames = torch.export.Dim("batch", min=1), torch.export.Dim("frames", min=1)
    example = (torch.zeros(2, 3, trained.n_mels), torch.tensor([3, 2]))
    shapes = {"mels": {0: batch, 1: frames}, "lengths": {0: batch}}
    torch.export.save(torch.export.export(trained.model, example, dynamic_shapes=shapes), path)


def _run(store: TrackingStore, run_id: str) -> Run:
    try:
        run = store.client.get_run(run_id)
    except MlflowException:
        raise UserError(
            f"there is no run {run_id!r} in {store.shown}; copy its id from the UI"
        ) from None
    tags = run.data.tags
    if SHA256 not in tags or tags.get(STATE) != "complete" or run.info.lifecycle_stage != "active":
        raise UserError(
            f"only a complete trial's run can be used, but run {run_id} is none; choose another"
        )
    return run


def _download(store: TrackingStore, uri: str, folder: str) -> Path:
    try:
        return Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=folder, tracking_uri=store.uri
            )
        )
    except STORE_ERRORS as error:
        raise UserError(
            f"the model's files cannot be read from {uri}; bring them back, or promote another run"
        ) from error


def _describe(registered: ModelVersion) -> str:
    tags = registered.tags
    where = (
        f"#{tags[TRIAL]} of study {tags[STUDY]}" if STUDY in tags else f"run {registered.run_id}"
    )
    return f"{registered.description}, whole {tags[BEST_WHOLE]}, crops {tags[BEST_CROPS]}, {where}"
