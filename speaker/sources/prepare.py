"""A folder of audio to a corpus in the homework's layout."""

import os
import re
import shlex
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low

from speaker.common.errors import UserError
from speaker.common.files import create_once, real_path
from speaker.common.seeding import permutation
from speaker.data.corpus import MANIFESTS, TEST_LABELS, Corpus, read_corpus, write_manifests
from speaker.data.features import N_MELS, SAMPLE_RATE
from speaker.data.labels import write_csv
from speaker.sources.audio import DEMUXERS
from speaker.sources.extraction import Extraction, extract_all
from speaker.sources.recordings import (
    Found,
    Recording,
    count_endings,
    ending_of,
    find_recordings,
    some_of,
)

PART = re.compile(  # a word that names a part of a data set, and no speaker
    r"(train(ing)?|trn|dev(el(opment)?)?|te?st(ing)?|eval(uation)?|val(id(ation)?)?|held|out|"
    r"heldout|enrol(l(ment)?)?|trials?|clean|other|noisy|seen|unseen|public|private|splits?|"
    r"(sub)?sets?|parts?|data|datasets?|corpus|audio|speech|sounds?|recordings|clips|male|female|"
    r"dr|wavs?|wave|silence|trimmed|aac|flac|mp3|mp4|m4a|ogg|opus|vox(celeb)?|"
    r"librispeech|libritts|timit)\d*"
)


@dataclass(frozen=True)
class PrepareOptions:
    """What to make of a folder of audio."""

    speakers: int | None = None  # how many to sample; all if None
    test_share: float = 0.0  # of each speaker's utterances, to be held out as the test set
    seed: int = 0  # decides which speakers, and which utterances are held out
    skip_bad: bool = False
    workers: int = 1
    level: int | None = None  # how deep the speakers' folders lie; 1, and checked, if None


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


class RecordingsError(UserError):
    """Recordings that cannot be used; `lines` says of each why."""

    def __init__(self, lines: tuple[str, ...], total: int) -> None:
        super().__init__(
            f"every recording must be usable, but {len(lines)} of {total} are not; fix or remove "
            "them, or leave them out with --skip-bad; the others are kept for the next call"
        )
        self.lines = lines


def prepare(audio: Path, out: Path, options: PrepareOptions) -> Prepared:
    """Make the corpus `out` from a folder with a folder of recordings for each speaker,
    at whatever depth.

    The folders in `audio` are taken for the speakers, unless there is only one, all are named like
    parts of a data set, or most recordings lie more than one folder below them: then the call is
    refused, and `options.level` says how deep they lie. What is done survives an interruption, and
    the next call resumes from there. Raises RecordingsError, with nothing at `out`, where
    recordings cannot be used and are not to be skipped, and UserError for what makes no corpus.
    """
    if out.exists() or out.is_symlink():
        raise UserError(
            f"--out must be a new folder, but {out} is there; remove it or choose another"
        )
    root = real_path(audio)
    if real_path(out).is_relative_to(root):
        raise UserError(f"--out must lie outside of --audio, but {out} lies in it; choose another")
    found = find_recordings(root, options.level or 1)
    if options.level is None:
        _check_level(found.recordings, audio, out, options)
    chosen = _choose(found, options, audio)
    result: list[Prepared] = []

    def create(partial: Path) -> None:
        partial.mkdir(exist_ok=True)
        extractions = extract_all(root, partial, chosen, options.workers)
        result.append(_finish(partial, extractions, options, found))

    create_once(out, create, resumable=True)
    if not result:
        raise UserError(
            f"--out must be a new folder, but another process has just made {out}; choose another"
        )
    return replace(result[0], corpus=read_corpus(out))


def _check_level(
    recordings: list[Recording], audio: Path, out: Path, options: PrepareOptions
) -> None:
    """Raise UserError if the folders in `audio` are unlikely to be the speakers."""
    folders = [recording.path.split("/")[:-1] for recording in recordings]
    level = _find_level(folders)
    names = sorted({recording.speaker for recording in recordings})
    if level == 1 or (level == 0 and len(names) < 2):  # the latter makes no corpus anyhow
        return
    if all(map(_names_a_part, names)):
        why = f"these are named like parts of a data set: {some_of(names)}"
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
        typed = _command(where, out, replace(options, level=deep))
        advice = f"if the speakers are {some_of(examples)}, type `{typed}`"
    insist = _command(audio, out, replace(options, level=1))
    raise UserError(
        f"the folders in {audio} must be the speakers, but {why}; {advice}; if {some_of(names)} "
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


def _command(audio: Path, out: Path, options: PrepareOptions) -> str:
    """Return what to type."""
    words = ["python", "-m", "speaker", "prepare", "--audio", str(audio), "--out", str(out)]
    for flag, value, default in (
        ("--speakers", options.speakers, None),
        ("--test-share", options.test_share, 0.0),
        ("--seed", options.seed, 0),
        ("--level", options.level, None),
    ):
        words += [flag, str(value)] if value != default else []
    return shlex.join(words + ["--skip-bad"] * options.skip_bad)


def _choose(found: Found, options: PrepareOptions, audio: Path) -> list[Recording]:
    """Return the recordings of the speakers that the options ask for."""
    recordings = found.recordings
    names = sorted({recording.speaker for recording in recordings})
    if odd := [name for name in names if not name.isprintable()]:
        raise UserError(
            f"a speaker's folder must have a name of printable characters, but got {odd[0]!r}; "
            "rename it"
        )
    wanted = len(names) if options.speakers is None else options.speakers
    if not 2 <= wanted <= len(names):
        raise UserError(
            f"a corpus needs at least 2 speakers and no more than there are, but got {wanted}, and "
            f"{audio} has {len(names)} folders with recordings, and {len(found.ignored):,} other "
            f"files ({count_endings(found.ignored) or 'none'}); check --audio and --speakers; "
            f"what is read ends in {', '.join(DEMUXERS)}"
        )
    order = permutation(len(names), options.seed, "speakers").tolist()
    sampled = {names[index] for index in order[:wanted]}
    return [recording for recording in recordings if recording.speaker in sampled]


def _finish(
    folder: Path, extractions: dict[Recording, Extraction], options: PrepareOptions, found: Found
) -> Prepared:
    """Make a corpus of the features in `folder`, and return what there is to say about it."""
    bad = tuple(extraction.error for extraction in extractions.values() if extraction.error)
    if bad and not options.skip_bad:
        raise RecordingsError(bad, len(extractions))
    by_speaker: dict[str, list[Recording]] = defaultdict(list)
    for recording, extraction in extractions.items():
        if not extraction.error:
            by_speaker[recording.speaker].append(recording)
    if len(by_speaker) < 2:
        raise UserError(
            f"a corpus needs at least 2 speakers, but of only {len(by_speaker)} a recording can be "
            f"used; the first that cannot: {bad[0]}"
        )
    corpus = _write_corpus(folder, by_speaker, extractions, options)
    return Prepared(
        corpus=corpus,
        frames=sum(extraction.frames for extraction in extractions.values()),
        clipped=sum(extraction.clipped for extraction in extractions.values()),
        bad=bad,
        lost=tuple(sorted({recording.speaker for recording in extractions} - set(by_speaker))),
        ignored=len(found.ignored),
        endings=count_endings(found.ignored),
        warnings=(*found.warnings, *_name_disguised(extractions), *_compare_rates(extractions)),
    )


def _write_corpus(
    folder: Path,
    by_speaker: dict[str, list[Recording]],
    extractions: dict[Recording, Extraction],
    options: PrepareOptions,
) -> Corpus:
    """Write manifests and labels beside the features, and remove what belongs to no utterance."""
    held_out = {
        recording for theirs in by_speaker.values() for recording in _hold_out(theirs, options)
    }
    labelled = {
        speaker: [
            (recording.feature_path, extractions[recording].frames)
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
        [(recording.feature_path, extractions[recording].frames) for recording in test],
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
    return corpus


def _name_disguised(extractions: dict[Recording, Extraction]) -> list[str]:
    """Return a line for each format under another's name."""
    paths = defaultdict(list)
    for recording, extraction in extractions.items():
        if extraction.disguised:
            ending = ending_of(recording.path)
            paths[ending, extraction.disguised].append(recording.path)
    return [
        f"a name should say the format, but {len(theirs):,} recordings named {ending} are {form}, "
        f"and were read as that: {some_of(theirs)}; rename them, if other programs are to read them"
        for (ending, form), theirs in sorted(paths.items())
    ]


def _compare_rates(extractions: dict[Recording, Extraction]) -> list[str]:
    """Return a line if some speakers were recorded at a lower sampling rate than the others.

    From 16 kHz on all rates are alike: the features end at 8 kHz. A speaker's rate is the median.
    """
    rates = defaultdict(list)
    for recording, extraction in extractions.items():
        if extraction.rate:
            rates[recording.speaker].append(min(extraction.rate, SAMPLE_RATE))
    usual = {speaker: median_low(theirs) for speaker, theirs in sorted(rates.items())}
    highest = max(usual.values(), default=0)
    low = [f"{speaker} at {rate:,} Hz" for speaker, rate in usual.items() if rate < highest]
    if not low:
        return []
    least = min(usual.values())
    return [
        "all speakers should be recorded at like sampling rates, but "
        f"{len(low):,} of {len(usual):,} have less than the {highest:,} Hz of the others: "
        f"{some_of(low)}; above {least // 2:,} Hz their features are empty, so that a model learns "
        f"the telephone and not the voice; convert all recordings to {least:,} Hz, or leave these "
        "speakers out"
    ]


def _hold_out(recordings: list[Recording], options: PrepareOptions) -> list[Recording]:
    """Return the share of one speaker's recordings that is to be in the test set;
    one at least stays out of it.
    """
    order = permutation(len(recordings), options.seed, "test", recordings[0].speaker).tolist()
    count = min(round(options.test_share * len(recordings)), len(recordings) - 1)
    return [recordings[index] for index in order[:count]]
