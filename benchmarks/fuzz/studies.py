"""A small file as `python -m experiments export` writes it, and what reads it."""

import hashlib
import io
import json
import zipfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import create_trial

from experiments.study.contract import CONTRACT, IDENTITY
from experiments.tracking import names
from experiments.transfer.archive import MODEL_FILES, STUDIES, SUMS, Archive, Writer
from experiments.transfer.checks import validate
from experiments.transfer.records import (
    FORMAT,
    Exported,
    StudyRecord,
    VersionRecord,
    parse_exported,
)
from experiments.transfer.runs import MetricRows, RunRecord
from experiments.transfer.trials import record_of
from speaker.common.files import sha256_file
from speaker.config import TrialConfig
from speaker.model.saved_model import WEIGHTS

STUDY, PARENT, RUN = "a" * 32, "b" * 32, "c" * 32


def write(folder: Path, model: Path, point: TrialConfig) -> None:
    """Write a study of one trial, whose model is registered."""
    folder.mkdir()
    when = datetime(2026, 11, 28, tzinfo=UTC).replace(tzinfo=None)
    choices: dict[str, BaseDistribution] = {"d_model": CategoricalDistribution((8, 16))}
    trial = create_trial(
        value=0.5, params={"d_model": 8}, distributions=choices,
        intermediate_values={2: 0.4, 4: 0.5}, user_attrs={"mlflow.run_id": RUN},
    )  # fmt: skip
    trial.datetime_start = trial.datetime_complete = when
    tags = {names.KIND: names.KIND_TRIAL, names.STUDY: "s", names.TRIAL: "0"}
    rows = MetricRows("accuracy/whole", (0.4, 0.5), (2, 4), (1, 2))
    run = RunRecord(
        RUN, "#0", "FINISHED", 1, 2, {"d_model": "8"},
        {**tags, names.SHA256: sha256_file(model / WEIGHTS)}, (rows,), (), point.to_json(),
    )  # fmt: skip
    parent = RunRecord(
        PARENT, "s", "FINISHED", 1, 2, {}, {names.KIND: names.KIND_STUDY, names.STUDY: "s"},
        (), (), "",
    )  # fmt: skip
    attributes = {CONTRACT: {"seed": 0}, IDENTITY: STUDY}
    study = StudyRecord("s", STUDY, attributes, (record_of(trial),), parent, (run,))
    exported = Exported(FORMAT, (study,), (VersionRecord(RUN, "card", {}, ("champion",)),))
    writer = Writer(folder / "s.zip")
    writer.add(STUDIES, json.dumps(asdict(exported)).encode())
    for name in MODEL_FILES:
        writer.add_file(f"models/{RUN}/{name}", model / name)
    writer.close()


def read(folder: Path) -> object:
    """Return what an import would take in."""
    archive = Archive(folder / "s.zip")
    exported = parse_exported(archive.text(STUDIES), folder / "s.zip")
    models = {}
    for run_id in archive.models():
        models[run_id] = folder / "models" / run_id
        archive.copy_model(run_id, models[run_id])
    validate(exported, models, folder / "s.zip")
    return exported, archive.digest()


def inside(whole: bytes) -> bytes:
    """Return the study that a file holds, as JSON."""
    with zipfile.ZipFile(io.BytesIO(whole)) as opened:
        return opened.read(STUDIES)


def around(whole: bytes, study: bytes) -> bytes:
    """Return the file with another study in it, and sums that fit."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as opened, zipfile.ZipFile(target, "w") as packed:
        contents = {name: opened.read(name) for name in opened.namelist() if name != SUMS}
        contents[STUDIES] = study
        for name, data in contents.items():
            packed.writestr(name, data)
        lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items()]
        packed.writestr(SUMS, "".join(lines))
    return target.getvalue()


PARTS = (inside, around)  # of an Example
