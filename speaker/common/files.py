"""Writing that a crash cannot break: whole files or none, and things that are made once however many ask."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from speaker.common.errors import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` by temporary file, fsync and rename, so that a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_once(path: Path, create: Callable[[Path], None], resumable: bool = False) -> None:
    """Make the file or folder `path` with `create(partial)`, unless it is there.

    Processes that ask at once wait for the one that makes it. `path` appears complete, by a rename, or not at all;
    what is half made is removed, or, where `create` can go on from it, kept for the next call.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        partial = path.with_name(f".{path.name}.partial")
        if not resumable:
            _remove(partial)
        try:
            create(partial)
            partial.replace(path)
        finally:
            if not resumable:
                _remove(partial)
        sync_folder(path.parent)


def read_bounded(path: Path, most: int) -> bytes:
    """Return the bytes of a stranger's file: a regular one, of at most `most` bytes, no link to another folder.

    Raises UserError, which says what it is instead. A pipe is not waited for.
    """
    if path.is_symlink() and path.resolve().parent != path.parent.resolve():
        raise UserError(f"{path}: must be a file in this folder, but is a link out of it; put the file itself there")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            about = os.fstat(stream.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UserError(f"{path}: must be a regular file, but is none; put the file itself there")
            if about.st_size > most:
                raise UserError(f"{path}: must have at most {most:,} bytes, but has {about.st_size:,}; fetch it again")
            return stream.read(most)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: must be a file that can be read, but cannot be ({error.strerror})") from error


def parse_json(data: bytes, path: Path) -> Any:
    """Return what a stranger's JSON says; `path` is for the error.

    Raises UserError for what is none, for a key that stands twice in one object (the last would win silently), and for
    NaN and infinity, which JSON does not have.
    """
    try:
        return json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} must be JSON, but is not ({str(error)[:200]}); fetch it again") from error


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no white space: equal values give equal text, fit to be hashed or compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:80]!r} stands twice")
        result[key] = value
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
