"""Take a study in from a file: `python -m experiments import`.

The file is checked whole before anything is written. What is written shows up when it is complete,
runs first, then trials, then the champion; after a kill the same command goes on from there.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import optuna
from mlflow.entities import Run
from optuna.storages import RDBStorage

from experiments.registry.register import register, set_champion
from experiments.registry.versions import find_version, registering
from experiments.study.contract import CONTRACT, IDENTITY, PARENT, name_objective
from experiments.study.locks import open_locks
from experiments.study.storage import open_storage
from experiments.tracking import names
from experiments.tracking.descriptions import ENDED
from experiments.tracking.pages import describe_search
from experiments.tracking.store import TrackingStore
from experiments.transfer.archive import STUDIES, Archive
from experiments.transfer.checks import trials_of, validate
from experiments.transfer.records import Exported, StudyRecord, VersionRecord, parse_exported
from experiments.transfer.runs import RunRecord, remove_imported, show_runs, write_run
from experiments.urls import masked
from speaker.common.errors import UserError

FROM = "import"  # attribute of an Optuna study: which study an import began to write
DONE = "whole"  # of a study's run: its import came to its end


@dataclass(frozen=True)
class Here:
    """The stores that a study is taken into, and when that is: date and time, UTC."""

    store: TrackingStore
    storage_url: str
    when: str


@dataclass
class Taken:
    """What an import has done, in words, and the studies that are new here."""

    lines: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


def take(path: Path, new_name: str | None, open_stores: Callable[[], Here]) -> Taken:
    """Take the studies of a file in, the first one under another name if one is given.

    Raises UserError, with nothing changed, for a file that is damaged or none of ours, and where
    another study has the name. No store is opened before the file is known to be good.
    """
    archive = Archive(path)
    exported = parse_exported(archive.text(STUDIES), path)
    with tempfile.TemporaryDirectory() as temporary:
        models = {}
        for run_id in archive.models():
            archive.copy_model(run_id, Path(temporary, run_id))
            models[run_id] = Path(temporary, run_id)
        validate(exported, models, path)
        if new_name:
            exported = _renamed(exported, new_name)
        here = open_stores()
        storage = open_storage(here.storage_url)
        for study in exported.studies:
            _must_be_free(here, storage, study, path)
        taken, run_ids = Taken(), dict[str, str]()
        for study in exported.studies:
            with open_locks(here.storage_url, study.name).holding("study"):
                mine = {run.run_id for run in study.runs}
                versions = [each for each in exported.versions if each.run_id in mine]
                run_ids |= _take_study(here, storage, study, versions, models, run_ids, taken)
        return taken


def _take_study(
    here: Here,
    storage: RDBStorage,
    study: StudyRecord,
    versions: Sequence[VersionRecord],
    models: Mapping[str, Path],
    known: Mapping[str, str],
    taken: Taken,
) -> dict[str, str]:
    """Take a study in, or what an import that was cut off has left of it; return what its runs are
    called here.
    """
    parent = _run_of(here.store, study)
    if parent and _is_whole(parent, storage, study):
        count = len(optuna.load_study(study_name=study.name, storage=storage).trials)
        there = f"{len(study.trials)} trials in the file, {count} here"
        taken.lines.append(f"Study {study.name} is here already ({there}): nothing changed.")
        return _known_runs(here.store, study, parent)
    run_ids = (
        _known_runs(here.store, study, parent)
        if parent
        else _write_runs(here.store, study, models, known)
    )
    _write_trials(storage, study, run_ids)
    describe_search(here.store, run_ids[study.parent.run_id], ENDED)
    taken.new.append(study.name)
    taken.lines.append(f"Study {study.name}: {len(study.trials)} trials, {len(study.runs)} runs.")
    taken.lines += _take_versions(here, versions, run_ids)
    here.store.tag_run(run_ids[study.parent.run_id], {names.IMPORTED: DONE})
    return run_ids


def _must_be_free(here: Here, storage: RDBStorage, study: StudyRecord, path: Path) -> None:
    """Raise UserError where one of the stores holds another study of this name."""
    parents = here.store.study_runs(study.name)
    known = _load(storage, study.name)
    there = known.user_attrs if known else {}
    is_other = any(run.data.tags.get(names.STUDY_ID) != study.identity for run in parents)
    is_other |= known is not None and study.identity not in (there.get(IDENTITY), there.get(FROM))
    if is_other:
        raise UserError(
            f"{path} holds a study {study.name!r}, but another study has this name here; take it "
            f"in as --as {study.name}-2"
        )
    if known is not None and CONTRACT in there and not parents:
        raise UserError(
            f"study {study.name!r} is in {masked(here.storage_url)} already, but its runs are not "
            f"in {here.store.shown}; give the right --tracking-uri, or take it in as --as "
            f"{study.name}-2"
        )


def _run_of(store: TrackingStore, study: StudyRecord) -> Run | None:
    """Return a study's run here, which is written last of its runs."""
    return next(iter(store.study_runs(study.name)), None)


def _is_whole(parent: Run, storage: RDBStorage, study: StudyRecord) -> bool:
    """Tell whether a study is here, and no import of it was cut off."""
    tags = parent.data.tags
    known = _load(storage, study.name)
    is_done = names.IMPORT not in tags or names.IMPORTED in tags
    return is_done and known is not None and CONTRACT in known.user_attrs


def _known_runs(store: TrackingStore, study: StudyRecord, parent: Run) -> dict[str, str]:
    """Return what the runs of a study are called here, by their ids in the file."""
    here = {run.data.tags.get(names.TRIAL): run.info.run_id for run in store.trial_runs(study.name)}
    found = {
        record.run_id: here[record.tags.get(names.TRIAL)]
        for record in study.runs
        if record.tags.get(names.TRIAL) in here
    }
    return {study.parent.run_id: parent.info.run_id, **found}


def _write_runs(
    store: TrackingStore, study: StudyRecord, models: Mapping[str, Path], known: Mapping[str, str]
) -> dict[str, str]:
    """Write the runs of a study; return what they are called here. Nobody sees them before all are
    written, and the study not before its own run is shown, the last one.
    """
    mark = f"{study.identity} {study.name}"
    remove_imported(store, mark)
    above = known.get(study.parent.tags.get(names.PARENT, ""), "")
    parent = write_run(store, study.parent, mark, above, None)
    run_ids = {study.parent.run_id: parent}
    shown: dict[str, RunRecord] = {}
    for record in study.runs:
        run_id = write_run(store, record, mark, parent, models.get(record.run_id))
        run_ids[record.run_id] = run_id
        shown[run_id] = record

    def words(text: str) -> str:
        for there, here in run_ids.items():
            text = text.replace(there, here)
        return text

    show_runs(store, study.name, {**shown, parent: study.parent}, words)
    return run_ids


def _write_trials(storage: RDBStorage, study: StudyRecord, run_ids: Mapping[str, str]) -> None:
    """Write the trials of a study; it can be opened once its contract is there, the last thing."""
    known = _load(storage, study.name)
    if known is not None and CONTRACT in known.user_attrs:
        return
    if known is not None:  # an import was cut off
        optuna.delete_study(study_name=study.name, storage=storage)
    made = optuna.create_study(storage=storage, study_name=study.name, direction="maximize")
    made.set_user_attr(FROM, study.identity)
    made.add_trials(trials_of(study, run_ids))
    name_objective(made)
    last = {PARENT: run_ids[study.parent.run_id], IDENTITY: study.identity}
    last[CONTRACT] = study.user_attrs[CONTRACT]
    for key, value in {**study.user_attrs, **last}.items():
        if key != CONTRACT:
            made.set_user_attr(key, value)
    made.set_user_attr(CONTRACT, last[CONTRACT])


def _take_versions(
    here: Here, versions: Sequence[VersionRecord], run_ids: Mapping[str, str]
) -> list[str]:
    """Register the models that were registered there, and give them their names where these are
    free; return in words what was done.
    """
    lines = []
    for record in versions:
        run_id = run_ids[record.run_id]
        card = record.card.replace(record.run_id, run_id)
        tags = {
            key: record.tags[key] for key in (names.ACCURACY, names.CONFIRMED) if key in record.tags
        }
        with registering(here.store):
            for alias in record.aliases:
                if taken := find_version(here.store, alias):
                    if taken.run_id != run_id:
                        lines.append(
                            f"It has the {alias} of its old place, but version {taken.version} is "
                            f"{alias} here: python -m experiments promote --run {run_id} compares "
                            "them."
                        )
                    continue
                made = register(here.store, here.store.client.get_run(run_id), card, tags)
                why = f"it was {alias} where it was exported"
                set_champion(here.store, alias, str(made.version), here.when, why)
                lines.append(
                    f"{alias} of {names.MODEL} is version {made.version}, of run {run_id}."
                )
    return lines


def _load(storage: RDBStorage, name: str) -> optuna.Study | None:
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def _renamed(exported: Exported, name: str) -> Exported:
    """Return what is exported with the first study, and those that confirm it, named otherwise."""
    old = exported.studies[0].name
    studies = []
    for study in exported.studies:
        tags = {
            **study.parent.tags,
            **({names.CONFIRMS: name} if names.CONFIRMS in study.parent.tags else {}),
        }
        new = name + study.name.removeprefix(old)
        studies.append(replace(study, name=new, parent=replace(study.parent, tags=tags)))
    return replace(exported, studies=tuple(studies))
