"""The homework's archive, a .tar.gz in parts: read as one stream, each member checked before a byte of it is written.

`tarfile` only parses header blocks here: what its extraction allows depends on Python's patch level.
"""

import contextlib
import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speaker.common.errors import UserError
from speaker.data.corpus import MANIFESTS

BLOCK = 512
CHUNK = 1 << 20
MOST_MEMBERS = 1_000_000
MOST_BYTES = 256 << 30  # unpacked
FREE_BYTES, MOST_RATIO = 64 << 20, 50  # unpacked bytes may be this many, and this many for each packed one
LARGEST_FILE = 256 << 20  # twice the features of an hour and more
LARGEST_MANIFEST = 64 << 20
LARGEST_PAX = 8 << 10
FEATURES = re.compile(r"uttr-[A-Za-z0-9_-]{1,100}\.pt")
EXTRAS = {
    folder + name for folder in ("", "Dataset/") for name in ("._Dataset", "log_melspectrogram.pt", "sox_effects.pt")
}
FORBIDDEN_PAX = re.compile(rb"path|linkpath|size|GNU\.sparse\..*", re.DOTALL)
AGAIN = "fetch the archive again, from a source that you trust"


def unpack(paths: Sequence[Path], folder: Path) -> int:
    """Unpack the archive whose parts are `paths`, in order, into `folder`, which is made; return the number of files.

    Only the manifests and feature files of `Dataset/` are written, under their plain names, and memory stays bounded.
    Raises UserError for an archive that holds anything else but its known extras, or that is not whole; what has been
    unpacked by then is the caller's to remove.
    """
    folder.mkdir()
    total = sum(path.stat().st_size for path in paths)
    with (
        tqdm(total=total, desc="unpacking", unit="B", unit_scale=True, disable=None) as bar,
        contextlib.closing(_Stream(paths, bar)) as stream,
    ):
        seen = _unpack_members(stream, folder)
        stream.finish()
    if missing := [name for name in MANIFESTS if f"Dataset/{name}" not in seen]:
        raise stream.refuse(f"Dataset/{missing[0]}", "must be there, but is missing")
    return sum(1 for _ in folder.iterdir())


class _Joined(io.RawIOBase):
    """The parts, one after another, as one stream that knows which part it is in."""

    def __init__(self, paths: Sequence[Path], bar: Any) -> None:
        self.part = paths[0]
        self.count = 0
        self._left = list(paths[1:])
        self._file = self.part.open("rb", buffering=0)
        self._bar = bar

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := self._file.readinto(buffer)) and self._left:
            self._file.close()
            self.part = self._left.pop(0)
            self._file = self.part.open("rb", buffering=0)
        self.count += count or 0
        self._bar.update(count)
        return count or 0

    def close(self) -> None:
        self._file.close()
        super().close()


class _Stream:
    """The unpacked bytes of the parts, counted against the limits; a failure names the part where it showed."""

    def __init__(self, paths: Sequence[Path], bar: Any) -> None:
        self._joined = _Joined(paths, bar)
        self._gzip = gzip.GzipFile(fileobj=self._joined, mode="rb")
        self._count = 0

    def close(self) -> None:
        self._gzip.close()
        self._joined.close()

    def broken(self, reason: str) -> UserError:
        """Return the error for a stream that does not go on as it should."""
        return UserError(
            f"{self._joined.part}: the archive cannot be read on here ({reason}); "
            "this part, or one before it, is cut, damaged, missing or out of order: fetch it again"
        )

    def refuse(self, name: str, rule: str) -> UserError:
        """Return the error for a member that breaks a rule."""
        return UserError(f"{self._joined.part}: the archive's member {repr(name)[:80]} {rule}; {AGAIN}")

    def too_large(self, rule: str) -> UserError:
        """Return the error for an archive that would fill the disk."""
        return UserError(f"{self._joined.part}: the archive must {rule}, but goes beyond that here; {AGAIN}")

    def read(self, size: int) -> bytes:
        """Return `size` bytes."""
        data = self._read(size)
        if len(data) < size:
            raise self.broken("it ends within a member, or without the blocks of zeros at its end")
        return data

    def content(self, size: int) -> Iterator[bytes]:
        """Yield a member's content in chunks, and pass over what fills its last block."""
        for start in range(0, size, CHUNK):
            yield self.read(min(CHUNK, size - start))
        self.read(-size % BLOCK)

    def finish(self) -> None:
        """Read to the end of all parts, where gzip's checksum stands: only zeros may follow the last member."""
        while data := self._read(CHUNK):
            if data.count(0) < len(data):
                raise self.broken("something follows its end")

    def _read(self, size: int) -> bytes:
        try:
            data = self._gzip.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self.broken(str(error)[:200]) from error
        self._count += len(data)
        if self._count > MOST_BYTES:
            raise self.too_large(f"unpack to at most {MOST_BYTES:,} bytes")
        if self._count > FREE_BYTES + MOST_RATIO * self._joined.count:
            raise self.too_large(f"unpack to at most {MOST_RATIO} times its size")
        return data


def _unpack_members(stream: _Stream, folder: Path) -> set[str]:
    """Write the members' files up to the archive's end; return the names of all members."""
    seen: set[str] = set()
    for _ in range(MOST_MEMBERS):
        member = _read_header(stream)
        if member is None:
            return seen
        if member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
            _skip_pax(stream, member)
            continue
        name = member.name.removeprefix("./")
        if rule := _broken_rule(member, name) or (name in seen and "must stand in it once, but stands twice"):
            raise stream.refuse(member.name, rule)
        seen.add(name)
        if not member.isdir():
            _unpack_file(stream, member.size, None if name in EXTRAS else folder / name.removeprefix("Dataset/"))
    raise stream.too_large(f"have fewer than {MOST_MEMBERS:,} members")


def _unpack_file(stream: _Stream, size: int, path: Path | None) -> None:
    """Write a member's content to a new file, or only pass over it."""
    with path.open("xb") if path else contextlib.nullcontext() as file:
        for chunk in stream.content(size):
            if file:
                file.write(chunk)


def _read_header(stream: _Stream) -> tarfile.TarInfo | None:
    """Return the next member's header, its checksum verified, or None at the archive's end."""
    block = stream.read(BLOCK)
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except UnicodeDecodeError:
        name = block[:100].rstrip(b"\0").decode("utf-8", "backslashreplace")
        raise stream.refuse(name, "must have a header in UTF-8, but has not") from None
    except tarfile.HeaderError as error:
        if block.count(0) == BLOCK:
            return None
        raise stream.broken(f"{error} in the header of a member") from error


def _broken_rule(member: tarfile.TarInfo, name: str) -> str:
    """Return the rule that a member breaks and how, or nothing."""
    if member.isdir():
        return "" if name == "Dataset" and not member.size else "must be no folder other than Dataset/"
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return f"must be a regular file or a folder, but is of type {member.type!r}"
    folder, _, file = name.rpartition("/")
    manifest = file in MANIFESTS
    if name not in EXTRAS and not (folder == "Dataset" and (manifest or FEATURES.fullmatch(file))):
        return "must be a manifest or uttr-NAME.pt in Dataset/, but is neither"
    most = LARGEST_MANIFEST if manifest else LARGEST_FILE
    return "" if 0 <= member.size <= most else f"must have 0 to {most:,} bytes, but has {str(member.size)[:30]}"


def _skip_pax(stream: _Stream, member: tarfile.TarInfo) -> None:
    """Pass over a pax header, unless it would change what the next member is: only the plain header says that."""
    if not 0 <= member.size <= LARGEST_PAX:
        raise stream.refuse(member.name, f"must be a pax header of at most {LARGEST_PAX:,} bytes, but is no such")
    for key in _pax_keys(b"".join(stream.content(member.size))):
        if key is None or FORBIDDEN_PAX.fullmatch(key):
            what = "a malformed record" if key is None else repr(key.decode("ascii", "backslashreplace"))[:80]
            raise stream.refuse(member.name, f"must be a pax header of times and owners alone, but has {what}")


def _pax_keys(data: bytes) -> Iterator[bytes | None]:
    """Yield the keys of records `LENGTH KEY=VALUE` and a line end; None for a malformed one, and stop there."""
    while data:
        found = re.match(rb"([1-9][0-9]{0,4}) ([^=]+)=", data)
        length = int(found[1]) if found else 0
        if not found or length <= found.end() or data[length - 1 : length] != b"\n":
            yield None
            return
        yield found[2]
        data = data[length:]
