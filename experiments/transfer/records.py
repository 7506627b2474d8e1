"""What stands in the file of a study: plain records, whose every field is of its type."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.transfer.archive import AGAIN, STUDIES
from experiments.transfer.runs import Number, RunRecord
from speaker.common.errors import UserError
from speaker.common.records import parse_record

FORMAT = 1


@dataclass(frozen=True)
class TrialRecord:
    """A trial of Optuna. Its place in the study is its number."""

    state: str
    value: Number | None
    start: str | None  # ISO 8601, UTC
    complete: str | None
    params: dict[str, Any]
    distributions: dict[str, str]  # as JSON
    intermediate: dict[str, Number]  # by step
    user_attrs: dict[str, Any]
    system_attrs: dict[str, Any]


@dataclass(frozen=True)
class VersionRecord:
    """A registered version that was made from one of the runs."""

    run_id: str
    card: str
    tags: dict[str, str]
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class StudyRecord:
    """A study: of Optuna's storage its attributes and trials, of MLflow its runs."""

    name: str
    identity: str
    user_attrs: dict[str, Any]
    trials: tuple[TrialRecord, ...]
    parent: RunRecord
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Exported:
    """All that is in a file but models and pages: a study, and then those that confirm it."""

    format: int
    studies: tuple[StudyRecord, ...]
    versions: tuple[VersionRecord, ...]


def parse_exported(data: bytes, path: Path) -> Exported:
    """Return what a file says. Raises UserError for anything else."""
    found = parse_record(Exported, data, path / STUDIES, AGAIN)
    if found.format != FORMAT or not found.studies:
        raise UserError(
            f"{path} must be of format {FORMAT}, but is of format {found.format}; export it again "
            "by a program of this version"
        )
    return found
