"""Writing that a crash cannot break: whole files or none,
and things that are made once however many ask.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from speaker.common.errors import UserError

HEAD = 300  # bytes of a file that tell what it is
SIGNATURES = (  # how a file starts, what it is, and what to do where another was wanted
    (
        rb"\s*<(!doctype|html)",
        "a web page",
        "open it in a browser, sign in if it asks for that, and fetch it again",
    ),
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "a Git LFS pointer",
        "run git lfs pull in the repository that it came from, and copy the file itself from there",
    ),
    (
        rb"\x93NUMPY",
        "a NumPy array",
        "save it as a tensor: torch.save(torch.from_numpy(array), file)",
    ),
    (rb"\x1f\x8b", "a gzip file", "unpack it with gunzip"),
    (rb"PK[\x03\x05]", "a zip", "unpack it with unzip"),
    (rb".{257}ustar", "a tar", "unpack it with tar -xf"),
    (rb"BZh", "a bzip2 file", "unpack it with bunzip2"),
    (rb"\xfd7zXZ", "an xz file", "unpack it with unxz"),
    (rb"\x28\xb5\x2f\xfd", "a zstd file", "unpack it with unzstd"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it with 7z x"),
    (rb"Rar!", "a rar archive", "unpack it with unrar x"),
)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` by temporary file, fsync and rename,
    so that a reader sees the old file or the new one.
    """
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

    Processes that ask at once wait for the one that makes it. `path` appears complete, by a rename,
    or not at all; what is half made is removed, or, where `create` can go on from it, kept for the
    next call. Raises OSError for a path that cannot be made, a link to itself among them.
    """
    if path.exists():
        return
    if _is_loop(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
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


def remove_once(path: Path, half_only: bool = False) -> None:
    """Remove what `create_once` has made, or only what a kill has left half made; nothing while
    another process makes it. It disappears by a rename, as a whole.
    """
    with contextlib.suppress(Timeout), FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
        partial = path.with_name(f".{path.name}.partial")
        _remove(partial)
        if path.exists() and not half_only:
            path.replace(partial)
            _remove(partial)


def real_path(path: Path) -> Path:
    """Return a path without links; one that leads nowhere, or to itself, stays a path to no file.

    `Path.resolve` raises RuntimeError for a link to itself before Python 3.13.
    """
    return Path(os.path.realpath(path))


def what_is_at(path: Path) -> str:
    """Return what is at a path where something else was wanted, as the end of `but PATH ...`."""
    if path.is_dir():
        return "is a folder"
    if path.exists():
        return "is a file" if path.is_file() else "is a device or a pipe"
    if not path.is_symlink():
        return "does not exist"
    if _is_loop(path):
        return "is a link to itself"
    return f"is a link to {path.readlink()}, which does not exist"


def recognize(head: bytes) -> tuple[str, str] | None:
    """Return what a file with these first HEAD bytes is, and what to do,
    or None if it may be right.

    These are what is found in place of a corpus's files.
    """
    if not head:
        return "an empty file", "fetch it again"
    for pattern, kind, advice in SIGNATURES:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return kind, advice
    return None


def recognize_file(path: Path) -> tuple[str, str] | None:
    """Return what `recognize` says of a file."""
    with path.open("rb") as stream:
        return recognize(stream.read(HEAD))


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, if it is a regular one. A pipe is not waited for.

    Raises UserError for what is none.
    """
    how = os.O_RDONLY | os.O_NONBLOCK
    stream = open(path, "rb", opener=lambda name, _: os.open(name, how))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise UserError(f"{path}: must be a regular file, but it {what_is_at(path)}; put a file there")


def read_bounded(path: Path, most: int, again: str = "fetch it again") -> bytes:
    """Return the bytes of an untrusted file: a regular one, of at most `most` bytes,
    no link to another folder.

    Raises UserError, which says what it is instead, and what to do `again`.
    """
    _check_link(path)
    size = 0
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > most:
                raise UserError(
                    f"{path}: must have at most {most:,} bytes, but has {size:,}; {again}"
                )
            return stream.read(size)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {again}") from None
    except MemoryError:
        raise UserError(
            f"{path}: must fit into memory, but its {size:,} bytes do not; free some, or {again}"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: must be a file that can be read, but cannot be ({error.strerror}); give "
            "yourself the right to read it, or put another file there"
        ) from error


def parse_json(data: bytes, path: Path) -> Any:
    """Return what untrusted JSON says, in UTF-8, UTF-16 or UTF-32; `path` is for the error.

    Raises UserError for what is not JSON, for a key that stands twice in one object (the last would
    win silently), and for NaN and infinity, which JSON does not have.
    """
    try:
        return json.loads(
            data,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        reason, advice = str(error)[:200], "fetch it again"
        if found := recognize(data[:HEAD]):
            reason, advice = f"it is {found[0]}", found[1]
        raise UserError(f"{path} must be JSON, but is not ({reason}); {advice}") from error


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no white space: equal values give equal text,
    fit to be hashed or compared.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_loop(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _check_link(path: Path) -> None:
    """Raise UserError for a link out of its folder: a corpus must not lead to other files."""
    if not path.is_symlink():
        return
    if not path.is_file():
        raise UserError(
            f"{path}: must be a file, but it {what_is_at(path)}; put the file itself there"
        )
    source = real_path(path.parent)
    if real_path(path).parent != source:
        folders = (shlex.quote(str(each)) for each in (source, f"{source}-copy"))
        rule = "must be a file in this folder, but is a link out of it"
        copy = f"copy the files themselves by cp -rL {' '.join(folders)}"
        raise UserError(f"{path}: {rule}; {copy} and give the copy")


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


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:80]} is too large")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
