"""All studies, a line each. Those of one corpus and protocol stand together; no others compare."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from experiments.analysis.confirmation import confirm
from experiments.analysis.intervals import (
    Bounds,
    bounded,
    expected_bounds,
    half_width,
    measured_bounds,
)
from experiments.analysis.leaderboard import Row, rank, read_rows
from experiments.analysis.text_table import Column, text_lines
from experiments.proposals.curves import Estimate
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from speaker.common.cli import printable
from speaker.common.errors import UserError
from speaker.training.metrics import format_accuracy

STATES = ("complete", "pruned", "collapsed", "infeasible", "failed", "interrupted", "running")


@dataclass(frozen=True)
class Study:
    """What a study's runs say of it; `measured` names its corpus and protocol."""

    name: str
    corpus: str
    measured: tuple[str, str, str]  # the corpus's digest, the protocol of whole, that of crops
    states: Counter[str]  # of its trials
    winner: Row | None
    ended: datetime  # when its last trial ended, or the study began
    confirms: str  # the study whose best points it trained again
    confirmed_by: str
    has_champion: bool  # whether the champion is one of its trials


def all_studies(store: TrackingStore) -> list[Study]:
    """Return all studies: those of one corpus and protocol beside each other, and of these the one
    first of which most is to be expected. Raises UserError where there is none.
    """
    parents = store.runs(f"tags.{names.KIND} = '{names.KIND_STUDY}'")
    if not parents:
        raise UserError(f"there is no study in {store.shown}; run search.py first")
    runs: dict[str, list[Run]] = {}
    for run in store.runs(f"tags.{names.KIND} = '{names.KIND_TRIAL}'"):
        runs.setdefault(run.data.tags.get(names.STUDY, ""), []).append(run)
    rows = {name: rank(read_rows(store, of_study)) for name, of_study in runs.items() if name}
    confirmed = {
        parent.data.tags[names.CONFIRMS]: parent.data.tags[names.STUDY]
        for parent in parents
        if names.CONFIRMS in parent.data.tags and confirm(rows.get(_name(parent), []))
    }
    champion = _champion(store)
    studies = [
        _study(parent, runs.get(name, []), rows.get(name, []), confirmed, champion)
        for parent in parents
        for name in [_name(parent)]
    ]
    return sorted(studies, key=lambda study: (study.corpus, study.measured, -_merit(study)))


def _name(parent: Run) -> str:
    return str(parent.data.tags[names.STUDY])


def _study(
    parent: Run,
    runs: Sequence[Run],
    rows: Sequence[Row],
    confirmed: dict[str, str],
    champion: str,
) -> Study:
    tags = {name: printable(text) for name, text in parent.data.tags.items()}
    name = _name(parent)
    times = [run.info.end_time for run in runs if run.info.end_time] or [parent.info.start_time]
    return Study(
        name,
        tags.get("corpus", ""),
        (tags.get("corpus.digest", ""), tags.get("protocol.whole", ""),
         tags.get("protocol.crops", "")),
        Counter(run.data.tags.get(names.STATE, "") for run in runs),
        next((row for row in rows if row.state == "complete"), None),
        datetime.fromtimestamp(max(times) / 1000, UTC),
        tags.get(names.CONFIRMS, ""),
        confirmed.get(name, ""),
        any(run.info.run_id == champion for run in runs),
    )  # fmt: skip


def _champion(store: TrackingStore) -> str:
    """Return the id of the run that the champion comes from; nothing where there is none."""
    try:
        version = store.client.get_model_version_by_alias(names.MODEL, names.CHAMPION)
    except MlflowException:
        return ""
    return str(version.run_id)


def _merit(study: Study) -> float:
    if study.winner is None:
        return -1.0
    expected = study.winner.expected
    return expected.mean if expected else study.winner.whole or 0.0


def describe_studies(studies: Sequence[Study], width: int) -> str:
    """Return a table for each corpus and protocol, and why there are several."""
    parts = []
    for measured, group in groupby(studies, key=lambda study: study.measured):
        members = list(group)
        lines = [f"corpus {members[0].corpus} ({measured[0][:12]}), {measured[1]}"]
        parts.append("\n".join([*lines, *text_lines(_columns(members), width)]))
    if len(parts) > 1:
        parts.append(WHY_APART)
    return "\n\n".join(parts)


WHY_APART = (
    "Studies of different corpora or protocols are not ranked together: their accuracies were "
    "measured on other utterances, or otherwise."
)


def _columns(studies: Sequence[Study]) -> list[Column]:
    winners = [study.winner for study in studies]
    whole = [row.whole if row else None for row in winners]
    expected = [row.expected if row else None for row in winners]
    return [
        Column("study", [study.name for study in studies], is_words=True),
        *(
            Column(state, [str(study.states[state]) for study in studies])
            for state in STATES
            if any(study.states[state] for study in studies)
        ),
        Column("best", [format_accuracy(value) for value in whole]),
        Column("90 %", [half_width(_bounds(row)) for row in winners], dispensable=2),
        Column("expected", [format_accuracy(each.mean if each else None) for each in expected]),
        Column("ended", [f"{study.ended:%Y-%m-%d}" for study in studies], dispensable=1),
        Column("", [_remark(study) for study in studies], is_words=True),
    ]


def _bounds(row: Row | None) -> Bounds:
    return measured_bounds(row.whole, len(row.hits)) if row else None


def _remark(study: Study) -> str:
    words = [
        "champion" * study.has_champion,
        "confirmed" * bool(study.confirmed_by),
        f"confirms {study.confirms}" if study.confirms else "",
    ]
    return ", ".join(word for word in words if word)


def study_records(studies: Iterable[Study]) -> list[dict[str, Any]]:
    """Return studies with all that is known of them, by names that stay, in full precision."""
    return [_record(study) for study in studies]


def _record(study: Study) -> dict[str, Any]:
    row = study.winner
    expected: Estimate | None = row.expected if row else None
    return {
        "study": study.name,
        "corpus": study.corpus,
        "corpus_digest": study.measured[0],
        "protocol_whole": study.measured[1],
        "protocol_crops": study.measured[2],
        "trials": study.states.total(),
        **{state: study.states[state] for state in STATES},
        "best_run_id": row.run_id if row else None,
        "best_point": row.point if row else None,
        **bounded("accuracy_whole", row.whole if row else None, _bounds(row)),
        **bounded("expected", expected.mean if expected else None, expected_bounds(expected)),
        "ended": study.ended.isoformat(),
        "confirms": study.confirms,
        "confirmed_by": study.confirmed_by,
        "has_champion": study.has_champion,
    }
