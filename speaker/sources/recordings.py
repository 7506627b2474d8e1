"""A folder of audio to a corpus in the homework's layout: several processes, resumable,
the same files every time.
"""

import hashlib
import io
import json
import multiprocessing
import os
import re
import shlex
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from speaker.common.errors import UserError, first_line
from speaker.common.files import create_once
from speaker.common.processes import exit_with_parent, shielded_from_interrupts
from speaker.common.seeding import permutation
from speaker.data.corpus import MANIFESTS, TEST_LABELS, Corpus, read_corpus, write_manifests
from speaker.data.features import N_MELS, SAMPLE_RATE, log_mel, normalize_peak, trim_silence
from speaker.data.labels import write_csv
from speaker.sources.audio import DEMUXERS, Sound, read_sound

JOURNAL = "prepared.jsonl"
AT_ONCE = 8  # recordings that a process takes at a time
CLIPPED_AT, CLIPPED_SHARE = 0.999, 0.01  # of full scale; of a recording's samples
MAX_NAMED = 5  # in a line
PART = re.compile(  # a word that names a part of a data set, and no speaker
    r"(train(ing)?|trn|dev(el(opment)?)?|te?st(ing)?|eval(uation)?|val(id(ation)?)?|held|out|"
    r"heldout|enrol(l(ment)?)?|trials?|clean|other|noisy|seen|unseen|public|private|splits?|"
    r"(sub)?sets?|parts?|data|datasets?|corpus|audio|speech|sounds?|recordings|clips|male|female|"
    r"dr|wavs?|wave|silence|trimmed|aac|flac|mp3|mp4|m4a|ogg|opus|vox(celeb)?|"
    r"librispeech|libritts|timit)\d*"
)


@dataclass(frozen=True)
class Plan:
    """What to make of a folder of audio."""

    speakers: int | None = None  # how many to sample; all if None
    test_share: float = 0.0  # of each speaker's utterances, to be held out as the test set
    seed: int = 0  # decides which speakers, and which utterances are held out
    skip_bad: bool = False
    workers: int = 1
    level: int | None = None  # how deep the speakers' folders lie; 1, and checked, if None


@dataclass(frozen=True)
class Recording:
    """An audio file: its path below the folder, its speaker,
    and what tells a changed file from the same.
    """

    path: str
    speaker: str
    size: int
    mtime_ns: int

    @property
    def feature_path(self) -> str:
        """The name of its features: the same for the same path."""
        path = self.path.encode("utf-8", "surrogateescape")
        return f"uttr-{hashlib.md5(path, usedforsecurity=False).hexdigest()}.pt"


@dataclass(frozen=True)
class Outcome:
    """What became of a recording: its number of frames, or what is wrong with it."""

    frames: int = 0
    crc: int = 0  # of the feature file
    clipped: bool = False
    error: str = ""
    rate: int = 0  # at which it was recorded, in Hz; 0 if an older version prepared it
    disguised: str = ""  # its format, where its name says another


@dataclass(frozen=True)
class Prepared:
    """What came of a folder of audio. Its corpus was read before it was put in place."""

    corpus: Corpus
    frames: int
    clipped: int  # recordings
    bad: tuple[str, ...]  # a line for each recording that was left out
    lost: tuple[str, ...]  # speakers who were left out with all of theirs
    ignored: int  # other files
    endings: str = ""  # of these, with their numbers
    warnings: tuple[str, ...] = ()


class Found(NamedTuple):
    """What lies in a folder of audio."""

    recordings: list[Recording]  # in the order of their paths
    ignored: list[str]  # the paths of other files
    warnings: tuple[str, ...]


class RecordingsError(UserError):
    """Recordings that cannot be used; `lines` says of each why."""

    def __init__(self, lines: tuple[str, ...], total: int) -> None:
        super().__init__(
            f"every recording must be usable, but {len(lines)} of {total} are not; fix or remove "
            "them, or leave them out with --skip-bad; the others are kept for the next call"
        )
        self.lines = lines


def prepare(audio: Path, out: Path, plan: Plan) -> Prepared:
    """Make the corpus `out` from a folder with a folder of recordings for each speaker,
    at whatever depth.

    The folders in `audio` are taken for the speakers, unless there is only one, all are named like
    parts of a data set, or most recordings lie more than one folder below them: then the call is
    refused, and `plan.level` says how deep they lie. What is done survives an interruption, and the
    next call resumes from there. Raises RecordingsError, with nothing at `out`, where recordings
    cannot be used and are not to be skipped, and UserError for what makes no corpus.
    """
    if out.exists() or out.is_symlink():
        raise UserError(
            f"--out must be a new folder, but {out} is there; remove it or choose another"
        )
    root = Path(os.path.realpath(audio))  # resolve() knows no end to a link to itself
    found = find_recordings(root, plan.level or 1)
    if plan.level is None:
        _check_level(found.recordings, audio, out, plan)
    chosen = _choose(found, plan, audio)
    result: list[Prepared] = []

    def create(partial: Path) -> None:
        partial.mkdir(exist_ok=True)
        outcomes = _extract_all(root, partial, chosen, plan.workers)
        result.append(_finish(partial, outcomes, plan, found))

    create_once(out, create, resumable=True)
    if not result:
        raise UserError(
            f"--out must be a new folder, but another process has just made {out}; choose another"
        )
    return replace(result[0], corpus=read_corpus(out))


def find_recordings(audio: Path, level: int = 1) -> Found:
    """Return what lies below `audio`.

    A file's speaker is its first folder, or its second for `level` 2, and so on: `speaker/file` and
    VoxCeleb2's `speaker/video/file` are both understood. Folders whose names are one in two Unicode
    forms, as a Mac and a PC write them, are one speaker's. Hidden files are left out. Raises
    UserError for a folder that cannot be read or that is a link.
    """
    if not audio.is_dir():
        rule = "--audio must be a folder with a folder for each speaker"
        raise UserError(f"{rule}, but {audio} is not a folder; check the path")
    recordings, ignored, places = [], [], set()
    for folder, names in _walk(audio):
        parts = folder.relative_to(audio).parts
        if len(parts) == level:
            places.add(parts[-1])
        for name in names:
            path = "/".join((*parts, name))
            if len(parts) < level or name.startswith(".") or _ending(name) not in DEMUXERS:
                ignored.append(path)
                continue
            about = (folder / name).lstat()
            speaker = parts[level - 1]
            recordings.append(Recording(path, speaker, about.st_size, about.st_mtime_ns))
    recordings, doubles = _join_forms(sorted(recordings, key=lambda recording: recording.path))
    unheard = _name_unheard(places, recordings, ignored, level)
    return Found(recordings, ignored, (*doubles, *unheard))


def _walk(audio: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with the names of its files, but for hidden folders."""
    for folder, folders, names in os.walk(audio, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := [name for name in folders if Path(folder, name).is_symlink()]:
            rule = f"{Path(folder, links[0])}: a folder of recordings must not be a link"
            raise UserError(f"{rule}, but this is one; put the folder itself there")
        yield Path(folder), names


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _join_forms(recordings: list[Recording]) -> tuple[list[Recording], list[str]]:
    """Give one speaker's name to folders whose names differ in their Unicode forms alone."""
    forms = defaultdict(set)
    for name in {recording.speaker for recording in recordings}:
        forms[_form(name)].add(name)
    doubles = {form: sorted(names) for form, names in forms.items() if len(names) > 1}
    if not doubles:
        return recordings, []
    joined = {name: form for form, names in doubles.items() for name in names}
    warnings = [
        f"the folders {' and '.join(map(ascii, names))} have one name in two Unicode forms, and "
        "were taken for one speaker; rename one of them if they are two"
        for names in doubles.values()
    ]
    names = {each.speaker: joined.get(each.speaker, each.speaker) for each in recordings}
    return [replace(each, speaker=names[each.speaker]) for each in recordings], warnings


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _name_unheard(
    places: set[str],
    recordings: list[Recording],
    ignored: list[str],
    level: int,
) -> list[str]:
    """Return a line about the speakers' folders without a recording."""
    heard = {_form(recording.speaker) for recording in recordings}
    files: dict[str, list[str]] = {name: [] for name in places if _form(name) not in heard}
    for path in ignored if files else ():
        parts = path.split("/")
        if len(parts) > level and parts[level - 1] in files:
            files[parts[level - 1]].append(path)
    if not files:
        return []
    named = [f"{name} ({_count_endings(files[name]) or 'empty'})" for name in sorted(files)]
    return [
        f"each speaker's folder should hold recordings, but {len(files):,} do not, and are left "
        f"out: {_some(named)}; what is read ends in {', '.join(DEMUXERS)}; convert the others to "
        "wav or flac"
    ]


def _count_endings(paths: Iterable[str]) -> str:
    """Return the endings of files and their numbers, the most frequent first."""
    names = [path.rpartition("/")[2] for path in paths]
    endings = Counter(
        "hidden" if name.startswith(".") else _ending(name) or "no ending"  # as .DS_Store
        for name in names
    )
    return _some([f"{ending} {count:,}" for ending, count in endings.most_common()])


def _some(names: Sequence[str]) -> str:
    """Return the first few names."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _check_level(recordings: list[Recording], audio: Path, out: Path, plan: Plan) -> None:
    """Raise UserError if the folders in `audio` are unlikely to be the speakers."""
    folders = [recording.path.split("/")[:-1] for recording in recordings]
    level = _find_level(folders)
    names = sorted({recording.speaker for recording in recordings})
    if level == 1 or (level == 0 and len(names) < 2):  # the latter makes no corpus anyhow
        return
    if all(map(_names_a_part, names)):
        why = f"these are named like parts of a data set: {_some(names)}"
    elif len(names) == 1:
        why = f"there is only one: {names[0]}"
    else:
        why = f"most recordings lie {level} folders below them, or more: {recordings[0].path}"
    if level == 0:
        advice = "put each speaker's recordings into a folder of the speaker's own"
    else:
        parents = {"/".join(each[: level - 1]) for each in folders if len(each) >= level}
        examples = sorted({"/".join(each[:level]) for each in folders if len(each) >= level})
        (where, deep) = (audio / parents.pop(), None) if len(parents) == 1 else (audio, level)
        typed = _command(where, out, replace(plan, level=deep))
        advice = f"if the speakers are {_some(examples)}, type `{typed}`"
    insist = _command(audio, out, replace(plan, level=1))
    raise UserError(
        f"the folders in {audio} must be the speakers, but {why}; {advice}; if {_some(names)} "
        f"{'is a speaker' if len(names) == 1 else 'are the speakers'}, type `{insist}`"
    )


def _find_level(folders: list[list[str]]) -> int:
    """Return how deep the speakers' folders are likely to lie, 0 if nowhere; see `prepare`."""
    level = 1
    while names := {each[level - 1] for each in folders if len(each) >= level}:
        if len(names) > 1 and not all(map(_names_a_part, names)):
            return max(level, median_low(map(len, folders)) - 1)
        level += 1
    return 0


def _names_a_part(name: str) -> bool:
    words = [word for word in re.findall("[a-z0-9]+", name.lower()) if not word.isdigit()]
    return bool(words) and all(map(PART.fullmatch, words))


def _command(audio: Path, out: Path, plan: Plan) -> str:
    """Return what to type."""
    words = ["python", "-m", "speaker", "prepare", "--audio", str(audio), "--out", str(out)]
    for flag, value, default in (
        ("--speakers", plan.speakers, None),
        ("--test-share", plan.test_share, 0.0),
        ("--seed", plan.seed, 0),
        ("--level", plan.level, None),
    ):
        words += [flag, str(value)] if value != default else []
    return shlex.join(words + ["--skip-bad"] * plan.skip_bad)


def _refuse(error: OSError) -> None:
    raise UserError(
        f"{error.filename}: every folder must be readable, but this is not ({error.strerror})"
    ) from error


def _choose(found: Found, plan: Plan, audio: Path) -> list[Recording]:
    """Return the recordings of the speakers that the plan samples."""
    recordings = found.recordings
    names = sorted({recording.speaker for recording in recordings})
    if odd := [name for name in names if not name.isprintable()]:
        raise UserError(
            f"a speaker's folder must have a name of printable characters, but got {odd[0]!r}; "
            "rename it"
        )
    wanted = len(names) if plan.speakers is None else plan.speakers
    if not 2 <= wanted <= len(names):
        raise UserError(
            f"a corpus needs at least 2 speakers and no more than there are, but got {wanted}, and "
            f"{audio} has {len(names)} folders with recordings, and {len(found.ignored):,} other "
            f"files ({_count_endings(found.ignored) or 'none'}); check --audio and --speakers; "
            f"what is read ends in {', '.join(DEMUXERS)}"
        )
    order = permutation(len(names), plan.seed, "speakers").tolist()
    sampled = {names[index] for index in order[:wanted]}
    return [recording for recording in recordings if recording.speaker in sampled]


def _extract_all(
    audio: Path, folder: Path, recordings: list[Recording], workers: int
) -> dict[Recording, Outcome]:
    """Write the features of all recordings into `folder`; return what became of each,
    in their order.
    """
    done = _read_journal(folder, recordings)
    missing = [recording for recording in recordings if recording not in done]
    with (
        (folder / JOURNAL).open("a", buffering=1, encoding="utf-8") as journal,
        tqdm(
            total=len(recordings),
            initial=len(done),
            desc="preparing",
            unit="recording",
            disable=None,
            smoothing=0,
        ) as bar,
    ):
        for recording, outcome in _extracted(audio, folder, missing, workers):
            done[recording] = outcome
            if not outcome.error:  # what failed is tried again
                journal.write(
                    json.dumps({"recording": asdict(recording), "outcome": asdict(outcome)}) + "\n"
                )
            bar.update()
    return {recording: done[recording] for recording in recordings}


def _extracted(
    audio: Path, folder: Path, recordings: list[Recording], workers: int
) -> Iterator[tuple[Recording, Outcome]]:
    """Yield each recording's outcome as it comes, from processes of their own."""
    waiting = iter(recordings)
    running: dict[Future[list[Outcome]], list[Recording]] = {}
    with shielded_from_interrupts():
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_begin_worker
        )
    try:
        while True:
            while len(running) < 2 * workers and (some := list(islice(waiting, AT_ONCE))):
                paths = [
                    (audio / recording.path, folder / recording.feature_path) for recording in some
                ]
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
            "a process must outlive what it reads, but one died, of memory or of one of these: "
            f"{names[:900]}; remove the culprit, or try --workers 1, and run the same command to "
            "go on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _extract_some(paths: list[tuple[Path, Path]]) -> list[Outcome]:
    return [_extract(source, target) for source, target in paths]


def read_features(source: Path) -> Tensor:
    """Return the homework's features of a recording, float32 (frames, 40).

    Raises UserError, which names the file, for one that cannot be read or is silent.
    """
    return _read_features(source)[1]


def _read_features(source: Path) -> tuple[Sound, Tensor]:
    try:
        sound = read_sound(source)
        kept = trim_silence(normalize_peak(sound.waveform))
        if not len(kept):
            raise UserError(
                f"{source}: a recording must be louder than 1 % for 0.1 s, but is not; remove it"
            )
        return sound, log_mel(kept)
    except UserError:
        raise
    except Exception as error:  # whatever it is, it is this recording's, and others can be read
        reason = f"{type(error).__name__}: {first_line(error)}"
        fault = f"{source}: a recording must be readable, but reading it failed ({reason})"
        raise UserError(f"{fault}; convert it to wav or flac, or remove it") from error


def _extract(source: Path, target: Path) -> Outcome:
    """Write the homework's features of one recording."""
    try:
        sound, mels = _read_features(source)
    except UserError as error:
        return Outcome(error=str(error))
    stream = io.BytesIO()
    torch.save(mels, stream)
    target.write_bytes(stream.getvalue())  # whole once the journal says so
    clipped = float((sound.waveform.abs() >= CLIPPED_AT).float().mean()) >= CLIPPED_SHARE
    return Outcome(
        len(mels),
        zlib.crc32(stream.getvalue()),
        clipped,
        rate=sound.rate,
        disguised=sound.format if sound.misnamed else "",
    )


def _begin_worker() -> None:
    torch.set_num_threads(1)
    exit_with_parent()


def _read_journal(folder: Path, recordings: list[Recording]) -> dict[Recording, Outcome]:
    """Return what an interrupted call has finished of these recordings: unchanged sources,
    whole feature files.
    """
    wanted = set(recordings)
    done = {}
    path = folder / JOURNAL
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if not line.endswith("}}\n"):  # the last one, cut off
            continue
        entry = json.loads(line)
        recording, outcome = Recording(**entry["recording"]), Outcome(**entry["outcome"])
        target = folder / recording.feature_path
        if (
            recording in wanted
            and target.is_file()
            and zlib.crc32(target.read_bytes()) == outcome.crc
        ):
            done[recording] = outcome
    return done


def _finish(folder: Path, outcomes: dict[Recording, Outcome], plan: Plan, found: Found) -> Prepared:
    """Write the manifests and the labels of the held-out part,
    and remove what belongs to no utterance.
    """
    bad = tuple(outcome.error for outcome in outcomes.values() if outcome.error)
    if bad and not plan.skip_bad:
        raise RecordingsError(bad, len(outcomes))
    by_speaker: dict[str, list[Recording]] = defaultdict(list)
    for recording, outcome in outcomes.items():
        if not outcome.error:
            by_speaker[recording.speaker].append(recording)
    if len(by_speaker) < 2:
        raise UserError(
            f"a corpus needs at least 2 speakers, but of only {len(by_speaker)} a recording can be "
            f"used; the first that cannot: {bad[0]}"
        )
    held_out = {
        recording for theirs in by_speaker.values() for recording in _hold_out(theirs, plan)
    }
    labelled = {
        speaker: [
            (recording.feature_path, outcomes[recording].frames)
            for recording in theirs
            if recording not in held_out
        ]
        for speaker, theirs in sorted(by_speaker.items())
    }
    test = sorted(held_out, key=lambda recording: recording.feature_path)
    write_manifests(
        folder,
        N_MELS,
        labelled,
        [(recording.feature_path, outcomes[recording].frames) for recording in test],
    )
    corpus = read_corpus(folder)
    if test:
        write_csv(folder / TEST_LABELS, corpus, [recording.speaker for recording in test])
    kept = {
        *MANIFESTS,
        TEST_LABELS,
        *(utterance.feature_path for utterance in (*corpus.utterances, *corpus.test)),
    }
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
        ignored=len(found.ignored),
        endings=_count_endings(found.ignored),
        warnings=(*found.warnings, *_name_disguised(outcomes), *_compare_rates(outcomes)),
    )


def _name_disguised(outcomes: dict[Recording, Outcome]) -> list[str]:
    """Return a line for each format under another's name."""
    paths = defaultdict(list)
    for recording, outcome in outcomes.items():
        if outcome.disguised:
            ending = _ending(recording.path)
            paths[ending, outcome.disguised].append(recording.path)
    return [
        f"a name should say the format, but {len(theirs):,} recordings named {ending} are {form}, "
        f"and were read as that: {_some(theirs)}; rename them, if other programs are to read them"
        for (ending, form), theirs in sorted(paths.items())
    ]


def _compare_rates(outcomes: dict[Recording, Outcome]) -> list[str]:
    """Return a line if some speakers were recorded at a lower sampling rate than the others.

    From 16 kHz on all rates are alike: the features end at 8 kHz. A speaker's rate is the median.
    """
    rates = defaultdict(list)
    for recording, outcome in outcomes.items():
        if outcome.rate:
            rates[recording.speaker].append(min(outcome.rate, SAMPLE_RATE))
    usual = {speaker: median_low(theirs) for speaker, theirs in sorted(rates.items())}
    highest = max(usual.values(), default=0)
    low = [f"{speaker} at {rate:,} Hz" for speaker, rate in usual.items() if rate < highest]
    if not low:
        return []
    least = min(usual.values())
    return [
        "all speakers should be recorded at like sampling rates, but "
        f"{len(low):,} of {len(usual):,} have less than the {highest:,} Hz of the others: "
        f"{_some(low)}; above {least // 2:,} Hz their features are empty, so that a model learns "
        f"the telephone and not the voice; convert all recordings to {least:,} Hz, or leave these "
        "speakers out"
    ]


def _hold_out(recordings: list[Recording], plan: Plan) -> list[Recording]:
    """Return the share of one speaker's recordings that is to be in the test set;
    one at least stays out of it.
    """
    order = permutation(len(recordings), plan.seed, "test", recordings[0].speaker).tolist()
    count = min(round(plan.test_share * len(recordings)), len(recordings) - 1)
    return [recordings[index] for index in order[:count]]
