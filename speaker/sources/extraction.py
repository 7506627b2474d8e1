"""Recordings to feature files: several processes, resumable, the same files every time."""

import contextlib
import io
import json
import multiprocessing
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from speaker.common.errors import UserError, first_line
from speaker.common.files import read_bounded, write_atomically
from speaker.common.processes import exit_with_parent, shielded_from_interrupts
from speaker.common.records import Sealed, parse_record
from speaker.data.corpus import MAX_FEATURE_BYTES
from speaker.data.features import log_mel, normalize_peak, trim_silence
from speaker.sources.audio import Sound, read_sound
from speaker.sources.recordings import Recording

JOURNAL = "prepared.jsonl"
MAX_LINE = 1 << 16  # bytes
AT_ONCE = 8  # recordings that a process takes at a time
CLIPPED_AT, CLIPPED_SHARE = 0.999, 0.01  # of full scale; of a recording's samples


@dataclass(frozen=True)
class Extraction:
    """What became of a recording: its number of frames, or what is wrong with it."""

    frames: int = 0
    crc: int = 0  # of the feature file
    clipped: bool = False
    error: str = ""
    rate: int = 0  # at which it was recorded, in Hz; 0 if an older version prepared it
    disguised: str = ""  # its format, where its name says another


@dataclass(frozen=True)
class _Entry(Sealed):
    """A line of the journal."""

    recording: Recording
    outcome: Extraction


def extract_all(
    audio: Path, folder: Path, recordings: list[Recording], workers: int
) -> dict[Recording, Extraction]:
    """Write the features of all recordings into `folder`; return what became of each,
    in their order.
    """
    done = _read_journal(folder, recordings)
    # What is damaged in it goes, and so does a pipe or a link in its place.
    kept = "".join(_line(recording, extraction) for recording, extraction in done.items())
    write_atomically(folder / JOURNAL, kept.encode())
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
        for recording, extraction in _extracted(audio, folder, missing, workers):
            done[recording] = extraction
            if not extraction.error:  # what failed is tried again
                journal.write(_line(recording, extraction))
            bar.update()
    return {recording: done[recording] for recording in recordings}


def _extracted(
    audio: Path, folder: Path, recordings: list[Recording], workers: int
) -> Iterator[tuple[Recording, Extraction]]:
    """Yield each recording's extraction as it comes, from processes of their own."""
    waiting = iter(recordings)
    running: dict[Future[list[Extraction]], list[Recording]] = {}
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
                extractions = future.result()
                yield from zip(running.pop(future), extractions, strict=True)
    except BrokenProcessPool as error:
        names = ", ".join(recording.path for some in running.values() for recording in some)
        raise UserError(
            "a process must outlive what it reads, but one died, of memory or of one of these: "
            f"{names[:900]}; remove the culprit, or try --workers 1, and run the same command to "
            "go on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _extract_some(paths: list[tuple[Path, Path]]) -> list[Extraction]:
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


def _extract(source: Path, target: Path) -> Extraction:
    """Write the homework's features of one recording."""
    try:
        sound, mels = _read_features(source)
    except UserError as error:
        return Extraction(error=str(error))
    stream = io.BytesIO()
    torch.save(mels, stream)
    target.write_bytes(stream.getvalue())  # whole once the journal says so
    clipped = float((sound.waveform.abs() >= CLIPPED_AT).float().mean()) >= CLIPPED_SHARE
    return Extraction(
        len(mels),
        zlib.crc32(stream.getvalue()),
        clipped,
        rate=sound.rate,
        disguised=sound.format if sound.misnamed else "",
    )


def _begin_worker() -> None:
    torch.set_num_threads(1)
    exit_with_parent()


def _read_journal(folder: Path, recordings: list[Recording]) -> dict[Recording, Extraction]:
    """Return what an interrupted call has finished of these recordings: unchanged sources,
    whole feature files.
    """
    wanted = set(recordings)
    done: dict[Recording, Extraction] = {}
    path = folder / JOURNAL
    for line in _lines(path):
        with contextlib.suppress(UserError):  # a line cut off or damaged: it is extracted again
            entry = parse_record(_Entry, line, path, "")
            if entry.is_whole():
                done[entry.recording] = entry.outcome
    return {
        recording: extraction
        for recording, extraction in done.items()
        if recording in wanted and _crc(folder / recording.feature_path) == extraction.crc
    }


def _line(recording: Recording, extraction: Extraction) -> str:
    return json.dumps(asdict(_Entry(recording, extraction).sealed())) + "\n"


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a journal, up to one that is too long to be an entry."""
    if path.is_file():
        with path.open("rb") as stream:
            while (line := stream.readline(MAX_LINE)) and len(line) < MAX_LINE:
                yield line


def _crc(path: Path) -> int | None:
    try:
        return zlib.crc32(read_bounded(path, MAX_FEATURE_BYTES))
    except UserError:
        return None
