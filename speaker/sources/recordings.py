"""A folder of audio to a corpus in the homework's layout: several processes, resumable, the same files every time."""

import hashlib
import io
import json
import multiprocessing
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from speaker.common.errors import UserError
from speaker.common.files import create_once
from speaker.common.processes import exit_with_parent, shielded_from_interrupts
from speaker.common.seeding import permutation
from speaker.data.corpus import MANIFESTS, TEST_LABELS, Corpus, read_corpus, write_manifests
from speaker.data.features import N_MELS, log_mel, normalize_peak, trim_silence
from speaker.data.labels import write_csv
from speaker.sources.audio import DEMUXERS, read_audio

JOURNAL = "prepared.jsonl"
AT_ONCE = 8  # recordings that a process takes at a time
CLIPPED_AT, CLIPPED_SHARE = 0.999, 0.01  # of full scale; of a recording's samples


@dataclass(frozen=True)
class Plan:
    """What to make of a folder of audio."""

    speakers: int | None = None  # how many to sample; all if None
    test_share: float = 0.0  # of each speaker's utterances, to be held out as the test set
    seed: int = 0  # decides which speakers, and which utterances are held out
    skip_bad: bool = False
    workers: int = 1


@dataclass(frozen=True)
class Recording:
    """An audio file: its path below the folder, its speaker, and what tells a changed file from the same."""

    path: str
    speaker: str
    size: int
    mtime_ns: int

    @property
    def feature_path(self) -> str:
        """The name of its features: the same for the same path."""
        return f"uttr-{hashlib.md5(self.path.encode('utf-8', 'surrogateescape'), usedforsecurity=False).hexdigest()}.pt"


@dataclass(frozen=True)
class Outcome:
    """What became of a recording: its number of frames, or what is wrong with it."""

    frames: int = 0
    crc: int = 0  # of the feature file
    clipped: bool = False
    error: str = ""


@dataclass(frozen=True)
class Prepared:
    """What came of a folder of audio. Its corpus was read before it was put in place."""

    corpus: Corpus
    frames: int
    clipped: int  # recordings
    bad: tuple[str, ...]  # a line for each recording that was left out
    lost: tuple[str, ...]  # speakers who were left out with all of theirs
    ignored: int  # other files


class RecordingsError(UserError):
    """Recordings that cannot be used; `lines` says of each why."""

    def __init__(self, lines: tuple[str, ...], total: int) -> None:
        super().__init__(
            f"every recording must be usable, but {len(lines)} of {total} are not; mend or remove them, or leave them "
            "out with --skip-bad; the others are kept for the next call"
        )
        self.lines = lines


def prepare(audio: Path, out: Path, plan: Plan) -> Prepared:
    """Make the corpus `out` from a folder with a folder of recordings for each speaker, at whatever depth.

    What is done survives an interruption, and the next call goes on from there. Raises RecordingsError, with nothing at
    `out`, where recordings cannot be used and are not to be skipped, and UserError for what makes no corpus.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out must be a new folder, but {out} is there; remove it or choose another")
    audio = audio.resolve()
    recordings, ignored = find_recordings(audio)
    chosen = _choose(recordings, plan, audio)
    result: list[Prepared] = []

    def create(partial: Path) -> None:
        partial.mkdir(exist_ok=True)
        outcomes = _extract_all(audio, partial, chosen, plan.workers)
        result.append(_finish(partial, outcomes, plan, ignored))

    create_once(out, create, resumable=True)
    if not result:
        raise UserError(f"--out must be a new folder, but another process has just made {out}; choose another")
    return replace(result[0], corpus=read_corpus(out))


def find_recordings(audio: Path) -> tuple[list[Recording], int]:
    """Return the recordings below `audio`, in the order of their paths, and the number of other files.

    A file's speaker is its first folder: `speaker/file` and VoxCeleb2's `speaker/video/file` are both understood.
    Hidden files are left out. Raises UserError for a folder that cannot be read or that is a link.
    """
    if not audio.is_dir():
        raise UserError(f"--audio must be a folder with a folder for each speaker, but {audio} is none")
    found, ignored = [], 0
    for folder, folders, names in os.walk(audio, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := [name for name in folders if Path(folder, name).is_symlink()]:
            raise UserError(f"{Path(folder, links[0])}: a folder of recordings must be no link; put it there itself")
        for name in names:
            path = Path(folder, name)
            parts = path.relative_to(audio).parts
            if len(parts) > 1 and path.suffix.lower() in DEMUXERS and not name.startswith("."):
                about = path.lstat()
                found.append(Recording("/".join(parts), parts[0], about.st_size, about.st_mtime_ns))
            else:
                ignored += 1
    return sorted(found, key=lambda recording: recording.path), ignored


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: every folder must be readable, but this is not ({error.strerror})") from error


def _choose(recordings: list[Recording], plan: Plan, audio: Path) -> list[Recording]:
    """Return the recordings of the speakers that the plan samples."""
    names = sorted({recording.speaker for recording in recordings})
    if odd := [name for name in names if not name.isprintable()]:
        raise UserError(f"a speaker's folder must have a name of printable characters, but got {odd[0]!r}; rename it")
    wanted = len(names) if plan.speakers is None else plan.speakers
    if not 2 <= wanted <= len(names):
        raise UserError(
            f"a corpus needs at least 2 speakers and no more than there are, but got {wanted}, and {audio} has "
            f"{len(names)} folders with {', '.join(DEMUXERS)} files; check --audio and --speakers"
        )
    order = permutation(len(names), plan.seed, "speakers").tolist()
    sampled = {names[index] for index in order[:wanted]}
    return [recording for recording in recordings if recording.speaker in sampled]


def _extract_all(audio: Path, folder: Path, recordings: list[Recording], workers: int) -> dict[Recording, Outcome]:
    """Write the features of all recordings into `folder`; return what became of each, in their order."""
    done = _read_journal(folder, recordings)
    missing = [recording for recording in recordings if recording not in done]
    with (
        (folder / JOURNAL).open("a", buffering=1, encoding="utf-8") as journal,
        tqdm(
            total=len(recordings), initial=len(done), desc="preparing", unit="recording", disable=None, smoothing=0
        ) as bar,
    ):
        for recording, outcome in _extracted(audio, folder, missing, workers):
            done[recording] = outcome
            if not outcome.error:  # what failed is tried again
                journal.write(json.dumps({"recording": asdict(recording), "outcome": asdict(outcome)}) + "\n")
            bar.update()
    return {recording: done[recording] for recording in recordings}


def _extracted(
    audio: Path, folder: Path, recordings: list[Recording], workers: int
) -> Iterator[tuple[Recording, Outcome]]:
    """Yield each recording's outcome as it comes, from processes of their own."""
    waiting = iter(recordings)
    running: dict[Future[list[Outcome]], list[Recording]] = {}
    with shielded_from_interrupts():
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        while True:
            while len(running) < 2 * workers and (some := list(islice(waiting, AT_ONCE))):
                paths = [(audio / recording.path, folder / recording.feature_path) for recording in some]
                with shielded_from_interrupts():
                    running[pool.submit(_extract_some, paths)] = some
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                outcomes = future.result()
                yield from zip(running.pop(future), outcomes, strict=True)
    except BrokenProcessPool as error:
        names = ", ".join(recording.path for some in running.values() for recording in some)
        raise UserError(
            f"a process must outlive what it reads, but one died, of memory or of one of these: {names[:900]}; remove "
            "the culprit, or try --workers 1, and run the same command to go on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _extract_some(paths: list[tuple[Path, Path]]) -> list[Outcome]:
    return [_extract(source, target) for source, target in paths]


def _extract(source: Path, target: Path) -> Outcome:
    """Write the homework's features of one recording."""
    try:
        waveform = read_audio(source)
        sound = trim_silence(normalize_peak(waveform))
        if not len(sound):
            raise UserError(f"{source}: a recording must be louder than 1 % for 0.1 s, but is not; remove it")
    except UserError as error:
        return Outcome(error=str(error))
    mels = log_mel(sound)
    stream = io.BytesIO()
    torch.save(mels, stream)
    target.write_bytes(stream.getvalue())  # whole once the journal says so
    clipped = float((waveform.abs() >= CLIPPED_AT).float().mean()) >= CLIPPED_SHARE
    return Outcome(len(mels), zlib.crc32(stream.getvalue()), clipped)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    exit_with_parent()


def _read_journal(folder: Path, recordings: list[Recording]) -> dict[Recording, Outcome]:
    """Return what an interrupted call has finished of these recordings: unchanged sources, whole feature files."""
    wanted = set(recordings)
    done = {}
    path = folder / JOURNAL
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if not line.endswith("}}\n"):  # the last one, cut off
            continue
        entry = json.loads(line)
        recording, outcome = Recording(**entry["recording"]), Outcome(**entry["outcome"])
        target = folder / recording.feature_path
        if recording in wanted and target.is_file() and zlib.crc32(target.read_bytes()) == outcome.crc:
            done[recording] = outcome
    return done


def _finish(folder: Path, outcomes: dict[Recording, Outcome], plan: Plan, ignored: int) -> Prepared:
    """Write the manifests and the labels of the held-out part, and remove what belongs to no utterance."""
    bad = tuple(outcome.error for outcome in outcomes.values() if outcome.error)
    if bad and not plan.skip_bad:
        raise RecordingsError(bad, len(outcomes))
    by_speaker: dict[str, list[Recording]] = defaultdict(list)
    for recording, outcome in outcomes.items():
        if not outcome.error:
            by_speaker[recording.speaker].append(recording)
    if len(by_speaker) < 2:
        raise UserError(
            f"a corpus needs at least 2 speakers, but of only {len(by_speaker)} a recording can be used; the first "
            f"that cannot: {bad[0]}"
        )
    held_out = {recording for theirs in by_speaker.values() for recording in _hold_out(theirs, plan)}
    labelled = {
        speaker: [
            (recording.feature_path, outcomes[recording].frames) for recording in theirs if recording not in held_out
        ]
        for speaker, theirs in sorted(by_speaker.items())
    }
    test = sorted(held_out, key=lambda recording: recording.feature_path)
    write_manifests(
        folder, N_MELS, labelled, [(recording.feature_path, outcomes[recording].frames) for recording in test]
    )
    corpus = read_corpus(folder)
    if test:
        write_csv(folder / TEST_LABELS, corpus, [recording.speaker for recording in test])
    kept = {*MANIFESTS, TEST_LABELS, *(utterance.feature_path for utterance in (*corpus.utterances, *corpus.test))}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    os.sync()  # the corpus is put in place by a rename, which must not outrun what is in it
    return Prepared(
        corpus=corpus,
        frames=sum(outcome.frames for outcome in outcomes.values()),
        clipped=sum(outcome.clipped for outcome in outcomes.values()),
        bad=bad,
        lost=tuple(sorted({recording.speaker for recording in outcomes} - set(by_speaker))),
        ignored=ignored,
    )


def _hold_out(recordings: list[Recording], plan: Plan) -> list[Recording]:
    """Return the share of one speaker's recordings that is to be in the test set; one at least stays out of it."""
    order = permutation(len(recordings), plan.seed, "test", recordings[0].speaker).tolist()
    count = min(round(plan.test_share * len(recordings)), len(recordings) - 1)
    return [recordings[index] for index in order[:count]]
