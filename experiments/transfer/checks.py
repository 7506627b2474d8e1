"""Whether what a file says is a study: one name, one run a trial, each model that of its run."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from experiments.study.contract import CONTRACT, IDENTITY
from experiments.tracking import names
from experiments.transfer.archive import AGAIN
from experiments.transfer.records import Exported, StudyRecord
from experiments.transfer.runs import RunRecord
from experiments.transfer.trials import trial_of
from speaker.common.errors import UserError
from speaker.common.files import sha256_file
from speaker.model.saved_model import WEIGHTS, load_model

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # as a flag takes it
MAX_TAG = 8_000  # characters: MLflow cuts longer ones without a word


def validate(exported: Exported, models: Mapping[str, Path], path: Path) -> None:
    """Raise UserError unless a file holds a study, those that confirm it, and their models."""
    if fault := next(_faults(exported, models), None):
        raise UserError(f"{path} must hold a study as it was exported, but {fault}; {AGAIN}")
    for folder in models.values():
        try:
            load_model(folder)
        except UserError as error:
            name = f"models/{folder.name}"
            raise UserError(f"{path}: {str(error).replace(str(folder), name)}") from error


def trials_of(study: StudyRecord, run_ids: Mapping[str, str]) -> list[FrozenTrial]:
    """Return the trials of a study. Raises ValueError for what is none of Optuna's."""
    return [trial_of(record, number, run_ids) for number, record in enumerate(study.trials)]


def _faults(exported: Exported, models: Mapping[str, Path]) -> Iterator[str]:
    first, *others = exported.studies
    for study in exported.studies:
        yield from _faults_of(study)
    if any(
        study.parent.tags.get(names.CONFIRMS) != first.name or not study.name.startswith(first.name)
        for study in others
    ):
        yield f"another study is none that confirms {first.name!r}"
    runs = {run.run_id: run for study in exported.studies for run in (study.parent, *study.runs)}
    if len(runs) != sum(1 + len(study.runs) for study in exported.studies):
        yield "two of its runs have one id"
    for run_id, folder in models.items():
        if run_id not in runs:
            yield f"the model of a run {run_id} that is not there"
        elif _sha256(folder) != runs[run_id].tags.get(names.SHA256):
            yield f"the model of run {run_id} is not the one that this run made"
    for version in exported.versions:
        if version.run_id not in models:
            yield f"a registered model is of run {version.run_id[:80]!r}, whose weights are missing"


def _faults_of(study: StudyRecord) -> Iterator[str]:
    if not NAME.fullmatch(study.name):
        yield f"its name {study.name[:80]!r} is no study's"
        return
    contract: Any = study.user_attrs.get(CONTRACT)
    if not isinstance(contract, dict) or study.user_attrs.get(IDENTITY) != study.identity:
        yield f"study {study.name} has no contract, or the id of another one"
    if not re.fullmatch("[0-9a-f]{32}", study.identity):
        yield f"study {study.name} has the id {study.identity[:80]!r}"
    if not _is_run(study.parent, study, names.KIND_STUDY):
        yield f"the run of study {study.name} is another's"
    if not all(_is_run(run, study, names.KIND_TRIAL) for run in study.runs):
        yield f"a run in study {study.name} is none of its trials'"
    trials = [run.tags[names.TRIAL] for run in study.runs if names.TRIAL in run.tags]
    numbers = {str(number) for number in range(len(study.trials))}
    if len(set(trials)) != len(study.runs) or not numbers.issuperset(trials):
        yield f"the runs of study {study.name} are not one a trial"
    try:
        trials_of(study, {})
    except ValueError as error:
        yield f"{str(error)[:200]}"


def _is_run(run: RunRecord, study: StudyRecord, kind: str) -> bool:
    return (
        bool(re.fullmatch("[0-9a-f]{32}", run.run_id))
        and (run.tags.get(names.KIND), run.tags.get(names.STUDY)) == (kind, study.name)
        and all(len({len(rows.values), len(rows.steps), len(rows.timestamps)}) == 1
                for rows in run.metrics)
        and all(len(text) <= MAX_TAG for text in run.tags.values())
        and all(map(_is_text, (run.name, run.config, *run.params.values(), *run.tags.values())))
    )  # fmt: skip


def _is_text(text: str) -> bool:
    """Tell whether a text is none that a terminal obeys: it may be printed by any command."""
    return all(letter.isprintable() or letter in "\n\r\t" for letter in text)


def _sha256(folder: Path) -> str:
    return sha256_file(folder / WEIGHTS)
