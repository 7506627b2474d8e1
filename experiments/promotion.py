"""Put a model in charge, if it is better than the one that is, and take that back:
`python -m experiments promote` and `demote`.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from experiments.analysis.confirmation import confirmation_of
from experiments.analysis.gate import BETTER, INCOMPARABLE, WORSE, Contender, Verdict, judge
from experiments.registry.champions import RESTORED, Change
from experiments.registry.register import (
    BY_FORCE,
    register,
    remove_leftovers,
    set_champion,
    settle,
    version_of,
    versions_before,
)
from experiments.registry.versions import (
    check_version,
    complete_run,
    fetch_run,
    files_of_its_run,
    find_run,
    find_version,
    registering,
    sound_files,
)
from experiments.report.card import card, facts_of, score
from experiments.tracked_training import explaining_failures
from experiments.tracking import names
from experiments.tracking.access import registry_shown
from experiments.tracking.store import TrackingStore
from speaker.common.cli import printable
from speaker.common.errors import UserError
from speaker.model.saved_model import load_model

AGAIN = "run the same command again: it goes on from there"
NONE = Verdict(BETTER, "there was none before")


@dataclass(frozen=True)
class Request:
    """What is asked of the registry."""

    when: str  # date and time, UTC
    alias: str = names.CHAMPION
    reason: str = ""  # why the gate is overridden, or why a version is demoted
    is_dry: bool = False
    packs: Path = Path()  # where the validation utterances may be looked up


@dataclass(frozen=True)
class Candidate:
    """A run whose model is to be promoted, and what is known of it."""

    run: Run
    known: ModelVersion | None  # the version that was made from it
    speakers: tuple[str, ...]
    confirmed: str  # how; nothing of one that was not

    @property
    def name(self) -> str:
        """What it is called in sentences."""
        return _name(dict(self.run.data.tags), self.run.info.run_id)

    def confirmed_words(self) -> str:
        """Return whether and how it was confirmed."""
        if self.confirmed:
            return f"yes, {self.confirmed}"
        study = self.run.data.tags.get(names.STUDY)
        chosen = "the best of its study by" if study else "one seed, its best weights by"
        return f"no: {chosen} the utterances that it is scored on, which flatters"


def promote(store: TrackingStore, run_id: str, request: Request) -> str:
    """Give an alias to a run's model, made a version if it is none yet, and return in words what
    changed. Raises UserError, with nothing changed, where the model that has the alias is not worse
    beyond luck and no reason overrides that.
    """
    with _working(store, request) as (folder, _):
        candidate = _candidate(store, run_id, request, folder / "candidate")
        before = find_version(store, request.alias)
        if before is not None and before.run_id == run_id:
            return f"{_is(request, before)}\nIt was before, too: nothing changed."
        verdict = _judge(store, candidate, before, request, folder / "champion")
        refusal = "" if verdict.passes else _refusal(verdict, candidate, request)
        if request.is_dry:
            return _would(candidate, before, verdict, refusal, request)
        if refusal and not request.reason:
            raise UserError(refusal)
        facts = facts_of(candidate.run, candidate.speakers, request.packs)
        confirmed = candidate.confirmed_words()
        tags = {names.ACCURACY: score(facts), names.CONFIRMED: confirmed}
        after = register(store, candidate.run, card(facts, confirmed, request.alias), tags)
        why = f"{BY_FORCE}{request.reason}; {verdict.words}" if request.reason else verdict.words
        set_champion(store, request.alias, str(after.version), request.when, why)
        lines = [_is(request, after), *_compared(before, verdict)]
        lines += [f"Forced: {request.reason}"] if request.reason else []
        return "\n".join((*lines, _advice(candidate)))


def demote(store: TrackingStore, request: Request) -> str:
    """Give an alias back to the version that had it before, and return in words what changed.

    Raises UserError where there is none. One whose files are lost for good is passed over. After a
    demotion that was killed when the alias had moved, that one is completed, and no other is done.
    """
    with _working(store, request) as (folder, completed):
        current = find_version(store, request.alias)
        if current is None:
            raise UserError(
                f"only a version can be demoted, but none of {names.MODEL} is {request.alias} in "
                f"{registry_shown(store.uri)}; promote a study first: python -m experiments "
                "promote --study NAME"
            )
        if completed and completed.kind == RESTORED:
            return (
                f"{_is(request, current)}\nThe demotion of version {completed.before} on "
                f"{completed.when} was killed after that; it is complete now. To go back further, "
                "demote again."
            )
        for each in versions_before(store, request.alias):
            try:
                sound_files(store, each, folder / str(each.version))
            except UserError as error:
                print(f"warning: {error}", file=sys.stderr)
                continue
            why = request.reason or "no reason was given"
            set_champion(store, request.alias, str(each.version), request.when, why, RESTORED)
            return (
                f"{_is(request, each)}\nBefore, it was version {current.version}: {_about(current)}"
            )
        raise UserError(
            f"{request.alias} must have had an earlier version to go back to, but version "
            f"{current.version} is the first that can be used; promote another run instead: python "
            "-m experiments promote --run ID"
        )


@contextlib.contextmanager
def _working(store: TrackingStore, request: Request) -> Iterator[tuple[Path, Change | None]]:
    """Give a temporary folder, with the registry to itself and as the last command should have left
    it, with the change of the alias that a kill had left half made; a dry run leaves all as it is.
    """
    with (
        explaining_failures(AGAIN),
        contextlib.nullcontext() if request.is_dry else registering(store),
        tempfile.TemporaryDirectory() as temporary,
    ):
        yield Path(temporary), None if request.is_dry else settle(store, request.alias)


def _candidate(store: TrackingStore, run_id: str, request: Request, folder: Path) -> Candidate:
    """Return a candidate whose files are there. Raises UserError for a run that is none."""
    run = complete_run(store, run_id)
    if not request.is_dry:
        remove_leftovers(store, run_id)
    known = version_of(store, run_id)
    files = _files(store, known, request, folder) if known else fetch_run(store, run, folder)
    return Candidate(run, known, load_model(files).speakers, confirmation_of(store, run))


def _files(store: TrackingStore, known: ModelVersion, request: Request, folder: Path) -> Path:
    """Return where a version's files lie, made again if need be; a dry run says so instead."""
    if not request.is_dry:
        return sound_files(store, known, folder)
    fault, source = check_version(store, known, folder / "version")
    if fault is None:
        return source
    print(f"version {known.version} would be made again: {fault.words}")
    return files_of_its_run(store, known, fault, folder / "run") if fault.is_fatal else source


def _judge(
    store: TrackingStore,
    candidate: Candidate,
    before: ModelVersion | None,
    request: Request,
    folder: Path,
) -> Verdict:
    if before is None:
        return NONE
    try:
        speakers = load_model(_files(store, before, request, folder)).speakers
    except UserError as error:  # what cannot predict is no champion
        return Verdict(BETTER, f"what was before cannot be used: {error}")
    run = find_run(store, before.run_id)
    tags = {**before.tags, **(run.data.tags if run else {})}
    name = f"version {before.version} ({_name(tags, before.run_id)})"
    champion = Contender(name, tags, float(before.tags[names.BEST_WHOLE]), speakers)
    accuracy = candidate.run.data.metrics[names.BEST_WHOLE]
    mine = Contender(candidate.name, candidate.run.data.tags, accuracy, candidate.speakers)
    return judge(mine, champion)


def _refusal(verdict: Verdict, candidate: Candidate, request: Request) -> str:
    study = candidate.run.data.tags.get(names.STUDY)
    if verdict.kind == INCOMPARABLE:
        advice = "keep both, with --alias NAME"
    elif verdict.kind == WORSE or candidate.confirmed or not study:
        advice = "promote another --run ID"
    else:
        advice = f"try fresh seeds by python -m experiments confirm --study {study}"
    return (
        f"a new {request.alias} must be better than the one before beyond luck, but "
        f"{verdict.words}; {advice}, or override this with --force REASON"
    )


def _would(
    candidate: Candidate,
    before: ModelVersion | None,
    verdict: Verdict,
    refusal: str,
    request: Request,
) -> str:
    """Return what a promotion would do."""
    if refusal and not request.reason:
        return f"It would be refused: {refusal}.\nThis was a dry run: nothing changed."
    what = f"version {candidate.known.version}" if candidate.known else "a new version"
    lines = [f"{request.alias} of {names.MODEL} would be {what}: {candidate.name}"]
    lines += _compared(before, verdict)
    lines += [f"It would be forced: {request.reason}"] if request.reason else []
    return "\n".join((*lines, _advice(candidate), "This was a dry run: nothing changed."))


def _compared(before: ModelVersion | None, verdict: Verdict) -> list[str]:
    if before is None:
        return ["There was none before."]
    return [f"Before, it was version {before.version}: {_about(before)}", f"Gate: {verdict.words}"]


def _advice(candidate: Candidate) -> str:
    study = candidate.run.data.tags.get(names.STUDY)
    advice = f"; python -m experiments confirm --study {study} tries fresh seeds" if study else ""
    return f"Confirmed: {candidate.confirmed_words()}{'' if candidate.confirmed else advice}."


def _is(request: Request, registered: ModelVersion) -> str:
    return f"{request.alias} of {names.MODEL} is version {registered.version}: {_about(registered)}"


def _about(registered: ModelVersion) -> str:
    """Return a version in words; one of an older program has its point as its description."""
    tags = registered.tags
    whole, crops = tags[names.BEST_WHOLE], tags[names.BEST_CROPS]
    point = tags.get(names.POINT) or registered.description
    said = f"{point}, whole {whole}, crops {crops}, {_name(tags, registered.run_id)}"
    return printable(said)


def _name(tags: dict[str, str], run_id: str) -> str:
    if names.STUDY not in tags:
        return f"run {run_id}"
    return printable(f"#{tags[names.TRIAL]} of study {tags[names.STUDY]}")
