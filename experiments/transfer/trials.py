"""Optuna's trials as plain records, and back."""

from collections.abc import Mapping
from datetime import UTC, datetime

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from experiments.proposals.attributes import RUN_ID
from experiments.transfer.records import TrialRecord
from experiments.transfer.runs import as_json


def record_of(trial: FrozenTrial) -> TrialRecord:
    """Return all that a storage says of a trial."""
    return TrialRecord(
        trial.state.name,
        None if trial.value is None else as_json(trial.value),
        _to_utc(trial.datetime_start),
        _to_utc(trial.datetime_complete),
        dict(trial.params),
        {name: distribution_to_json(each) for name, each in trial.distributions.items()},
        {str(step): as_json(value) for step, value in trial.intermediate_values.items()},
        dict(trial.user_attrs),
        dict(trial.system_attrs),
    )


def trial_of(record: TrialRecord, number: int, run_ids: Mapping[str, str]) -> FrozenTrial:
    """Return the trial of a record; `run_ids` says what its run is called here.

    Raises ValueError for what is no trial of Optuna's.
    """
    attributes = dict(record.user_attrs)
    if (there := attributes.pop(RUN_ID, None)) in run_ids:
        attributes[RUN_ID] = run_ids[str(there)]
    try:
        trial = FrozenTrial(
            number=number,
            trial_id=-1,
            state=TrialState[record.state],
            value=None if record.value is None else float(record.value),
            values=None,
            datetime_start=_to_local(record.start),
            datetime_complete=_to_local(record.complete),
            params=record.params,
            distributions={
                name: json_to_distribution(text) for name, text in record.distributions.items()
            },
            user_attrs=attributes,
            system_attrs=record.system_attrs,
            intermediate_values={
                int(step): float(value) for step, value in record.intermediate.items()
            },
        )
        trial._validate()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"trial {number} is none of Optuna's ({error!r})") from error
    return trial


# Optuna keeps times of day without a zone, as its machine's clock shows them.


def _to_utc(time: datetime | None) -> str | None:
    return time.astimezone(UTC).isoformat() if time else None


def _to_local(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone().replace(tzinfo=None) if text else None
