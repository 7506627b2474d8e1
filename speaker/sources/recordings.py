"""What lies in a folder of audio: recordings, their speakers, and other files."""

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from speaker.common.errors import UserError
from speaker.sources.audio import DEMUXERS

MAX_NAMED = 5  # in a line


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


class Found(NamedTuple):
    """What lies in a folder of audio."""

    recordings: list[Recording]  # in the order of their paths
    ignored: list[str]  # the paths of other files
    warnings: tuple[str, ...]


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
            if len(parts) < level or name.startswith(".") or ending_of(name) not in DEMUXERS:
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


def ending_of(name: str) -> str:
    """Return what a file's name ends in, with its dot and in lower case."""
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
    named = [f"{name} ({count_endings(files[name]) or 'empty'})" for name in sorted(files)]
    return [
        f"each speaker's folder should hold recordings, but {len(files):,} do not, and are left "
        f"out: {some_of(named)}; what is read ends in {', '.join(DEMUXERS)}; convert the others to "
        "wav or flac"
    ]


def count_endings(paths: Iterable[str]) -> str:
    """Return the endings of files and their numbers, the most frequent first."""
    names = [path.rpartition("/")[2] for path in paths]
    endings = Counter(
        "hidden" if name.startswith(".") else ending_of(name) or "no ending"  # as .DS_Store
        for name in names
    )
    return some_of([f"{ending} {count:,}" for ending, count in endings.most_common()])


def some_of(names: Sequence[str]) -> str:
    """Return the first few names."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _refuse(error: OSError) -> None:
    raise UserError(
        f"{error.filename}: every folder must be readable, but this is not ({error.strerror})"
    ) from error
