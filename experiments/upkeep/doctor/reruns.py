"""Failed trials are run again on request: each is put in the study's queue once more."""

import optuna

from experiments.proposals.rescue import attributes_of_repetition, to_repeat
from experiments.study.contract import CONTRACT
from experiments.study.locks import open_locks
from experiments.upkeep.doctor.survey import Place, existing_storage
from speaker.common.errors import UserError


def rerun_failed(place: Place, only: str | None) -> list[str]:
    """Have the failed trials of all studies, or of `only` one, run again by their next search, or
    by one that goes on now; return a line a study.

    Raises UserError for an unknown study.
    """
    storage = existing_storage(place.storage_url)
    known = optuna.get_all_study_names(storage) if storage else []
    if only and only not in known:
        raise UserError(
            f"--rerun-failed needs a study in the storage, but {only!r} is none; check --storage"
        )
    lines = []
    for name in [only] if only else known:
        study = optuna.load_study(study_name=name, storage=storage or place.storage_url)
        if CONTRACT in study.user_attrs and (numbers := _enqueue(place.storage_url, study)):
            listed = ", ".join(f"#{number}" for number in numbers)
            lines.append(f"{name}: {listed} will be run again by the search's own command.")
    return lines


def _enqueue(url: str, study: optuna.Study) -> list[int]:
    """Queue a study's failed trials, and return their numbers; each is queued once."""
    with open_locks(url, study.study_name).holding("study"):
        failed = to_repeat(study.get_trials(deepcopy=False))
        for trial in failed:
            about = attributes_of_repetition(trial)
            study.enqueue_trial(trial.params, user_attrs=about)
    return [trial.number for trial in failed]
