"""Writing that a crash cannot break: whole files or none, and things that are made once however many ask."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


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


def create_once(path: Path, create: Callable[[Path], None]) -> None:
    """Make the file or folder `path` with `create(partial)`, unless it is there.

    Processes that ask at once wait for the one that makes it. `path` appears complete, by a rename, or not at all;
    what a killed process left half made is removed first.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        partial = path.with_name(f".{path.name}.partial")
        _remove(partial)
        try:
            create(partial)
            partial.replace(path)
        finally:
            _remove(partial)
        sync_folder(path.parent)


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
