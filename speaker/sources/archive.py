"""The homework's archive: each member is checked before a byte of it is written.

A .tar.gz in parts is read as one stream; `tarfile` only parses header blocks here, since what its
extraction allows depends on Python's patch level. A zip, as Kaggle makes them, lists its members at
its end, so that all are checked before the first is written.
"""

import contextlib
import gzip
import io
import re
import shlex
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speaker.common.errors import UserError
from speaker.common.files import recognize_file
from speaker.common.zips import StrangersZip
from speaker.data.corpus import MANIFESTS

BLOCK = 512
CHUNK = 1 << 20
MAX_MEMBERS = 200_000  # the homework's has 64,671, or twice that with a Mac's shadow files
# Members may be this many, and one for so many packed bytes: a feature file has more of its own.
FREE_MEMBERS, MEMBER_BYTES = 20_000, 100
MAX_BYTES = 256 << 30  # unpacked
# Unpacked bytes may be this many, and this many for each packed one.
FREE_BYTES, MAX_RATIO = 64 << 20, 50
MAX_FILE_BYTES = 256 << 20  # twice the features of an hour and more
MAX_MANIFEST_BYTES = 64 << 20
MAX_PAX_BYTES = 8 << 10
ZEROS = 4 << 20  # bytes of zeros at the end of a part that are more than padding
FOLDERS = r"(?:[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}/){0,3}"
CORPUS_FILE = re.compile(
    rf"({FOLDERS})({'|'.join(map(re.escape, MANIFESTS))}|uttr-[A-Za-z0-9_-]{{1,100}}\.pt)"
)
EXTRA = re.compile(rf"{FOLDERS}(?:log_melspectrogram|sox_effects)\.pt")
SHADOW = re.compile(  # what a Mac or Windows puts beside files
    rf"(?:__MACOSX/)?{FOLDERS}(?:\._[^/\\]+|\.DS_Store|Thumbs\.db|desktop\.ini)", re.DOTALL
)
PLAIN_PATH = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))(?:[^/\\]+/)*[^/\\]+/?", re.DOTALL)
PART_OR_TAR = re.compile(r".*(?:\.part[a-z]{2}|\.tar\.gz|\.tgz)", re.DOTALL)
FORBIDDEN_PAX = re.compile(rb"path|linkpath|size|GNU\.sparse\..*", re.DOTALL)
AGAIN = "fetch the archive again, from a source that you trust"


def unpack(paths: Sequence[Path], folder: Path) -> int:
    """Unpack an archive, a zip or the parts of a .tar.gz in order, into `folder`, which is made.

    Only the manifests and feature files of one folder of the archive are written, under their plain
    names, and memory stays bounded; what a Mac or Windows adds is left out. Returns the number of
    files. Raises UserError for an archive that holds anything else but its known extras, or that is
    not whole; what has been unpacked by then is the caller's to remove.
    """
    folder.mkdir()
    kind, advice = recognize_file(paths[0]) or ("", "")
    if kind == "a zip":
        _unpack_zip(paths, folder)
    elif kind in ("a gzip file", ""):
        _unpack_tar(paths, folder)
    else:
        then = ", then use the folder that this gives" if advice.startswith("unpack") else ""
        rule = "an archive must be a .tar.gz or a .zip"
        raise UserError(f"{paths[0]}: {rule}, but this is {kind}; {advice}{then}")
    return sum(1 for _ in folder.iterdir())


def _unpack_tar(paths: Sequence[Path], folder: Path) -> None:
    for path in paths:
        _check_end(path)
    total = sum(path.stat().st_size for path in paths)
    with (
        tqdm(total=total, desc="unpacking", unit="B", unit_scale=True, disable=None) as bar,
        contextlib.closing(_Stream(paths, bar)) as stream,
    ):
        names = _Names()
        _unpack_members(stream, folder, names)
        stream.finish()
    if missing := names.missing():
        raise stream.refuse(missing, "must be there, but is missing")


def _check_end(path: Path) -> None:
    """Raise UserError for a part that ends in zeros:
    a download that reserved its space and stopped.

    Python's gzip would pass over them one by one.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, size - ZEROS))
        tail = stream.read(ZEROS)
    if tail.count(0) == ZEROS:
        raise UserError(
            f"{path}: a part must be whole, but its last {ZEROS:,} bytes are zeros, as a download "
            "that was not finished leaves them; fetch it again"
        )


class _Names:
    """The names of an archive's members: which are the corpus's, all in one folder,
    and which may be there.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder  # as "Dataset/"; the first member of a corpus says which
        self._seen: set[str] = set()

    def fault(self, name: str, is_folder: bool, size: int) -> str:
        """Return the rule that a member breaks and how, or nothing."""
        fault = self._folder_fault(name, size) if is_folder else self._file_fault(name, size)
        if not fault and name in self._seen:
            fault = "must stand in it once, but stands twice"
        self._seen.add(name)
        return fault

    def is_corpus_file(self, name: str) -> bool:
        """Whether a member is to be written."""
        found = CORPUS_FILE.fullmatch(name)
        return found is not None and found[1] == self._folder

    def missing(self) -> str:
        """Return the first manifest that no member is, or nothing."""
        names = [f"{self._folder or ''}{name}" for name in MANIFESTS]
        return next((name for name in names if name not in self._seen), "")

    def _file_fault(self, name: str, size: int) -> str:
        least, most = 0, MAX_FILE_BYTES
        if found := CORPUS_FILE.fullmatch(name):
            self._folder = found[1] if self._folder is None else self._folder
            least, most = 1, MAX_MANIFEST_BYTES if found[2] in MANIFESTS else MAX_FILE_BYTES
        if not (self.is_corpus_file(name) or EXTRA.fullmatch(name) or SHADOW.fullmatch(name)):
            where = "one folder" if self._folder is None else self._folder or "no folder"
            return f"must be a manifest or uttr-NAME.pt in {where}, but is neither"
        if not least <= size <= most:
            return f"must have {least} to {most:,} bytes, but has {str(size)[:30]}"
        return ""

    def _folder_fault(self, name: str, size: int) -> str:
        if self._folder is None:
            right = name == "." or re.fullmatch(FOLDERS, f"{name}/") is not None
        else:
            right = self._folder.startswith(f"{name}/")
        if not size and (right or re.fullmatch(f"__MACOSX/{FOLDERS}", f"{name}/")):
            return ""
        return f"must be no folder other than {self._folder or 'that of a corpus'}"


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
    """The unpacked bytes of the parts, counted against the limits;
    a failure names the part where it showed.
    """

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
        return UserError(
            f"{self._joined.part}: the archive's member {repr(name)[:80]} {rule}; {AGAIN}"
        )

    def too_large(self, rule: str) -> UserError:
        """Return the error for an archive that would fill the disk."""
        return UserError(
            f"{self._joined.part}: the archive must {rule}, but goes beyond that here; {AGAIN}"
        )

    def check_count(self, members: int) -> None:
        """Raise UserError where there are more members than what is packed can be worth."""
        if members > FREE_MEMBERS + self._joined.count // MEMBER_BYTES:
            rule = f"have at most {FREE_MEMBERS:,} members and one for each {MEMBER_BYTES} bytes"
            raise self.too_large(rule)

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
        """Read to the end of all parts, where gzip's checksum stands:
        only zeros may follow the last member.
        """
        while data := self._read(CHUNK):
            if data.count(0) < len(data):
                raise self.broken("something follows its end")

    def _read(self, size: int) -> bytes:
        try:
            data = self._gzip.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self.broken(str(error)[:200]) from error
        self._count += len(data)
        if self._count > MAX_BYTES:
            raise self.too_large(f"unpack to at most {MAX_BYTES:,} bytes")
        if self._count > FREE_BYTES + MAX_RATIO * self._joined.count:
            raise self.too_large(f"unpack to at most {MAX_RATIO} times its size")
        return data


def _unpack_members(stream: _Stream, folder: Path, names: _Names) -> None:
    """Write the members' files up to the archive's end."""
    for count in range(MAX_MEMBERS):
        stream.check_count(count)
        member = _read_header(stream)
        if member is None:
            return
        if member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
            _skip_pax(stream, member)
            continue
        name = member.name.removeprefix("./")
        if rule := _type_fault(member) or names.fault(name, member.isdir(), member.size):
            raise stream.refuse(member.name, rule)
        if not member.isdir():
            wanted = names.is_corpus_file(name)
            _unpack_file(stream, member.size, folder / Path(name).name if wanted else None)
    raise stream.too_large(f"have fewer than {MAX_MEMBERS:,} members")


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


def _type_fault(member: tarfile.TarInfo) -> str:
    if member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return ""
    return f"must be a regular file or a folder, but is of type {member.type!r}"


def _skip_pax(stream: _Stream, member: tarfile.TarInfo) -> None:
    """Pass over a pax header, unless it would change what the next member is:
    only the plain header says that.
    """
    if not 0 <= member.size <= MAX_PAX_BYTES:
        raise stream.refuse(
            member.name, f"must be a pax header of at most {MAX_PAX_BYTES:,} bytes, but is not"
        )
    for key in _pax_keys(b"".join(stream.content(member.size))):
        if key is None or FORBIDDEN_PAX.fullmatch(key):
            what = (
                "a malformed record"
                if key is None
                else repr(key.decode("ascii", "backslashreplace"))[:80]
            )
            raise stream.refuse(
                member.name, f"must be a pax header of times and owners alone, but has {what}"
            )


def _pax_keys(data: bytes) -> Iterator[bytes | None]:
    """Yield the keys of records `LENGTH KEY=VALUE` and a line end; None for a malformed one,
    and stop there.
    """
    while data:
        found = re.match(rb"([1-9][0-9]{0,4}) ([^=]+)=", data)
        length = int(found[1]) if found else 0
        if not found or length <= found.end() or data[length - 1 : length] != b"\n":
            yield None
            return
        yield found[2]
        data = data[length:]


def _unpack_zip(paths: Sequence[Path], folder: Path) -> None:
    """Write a zip's corpus into a folder, once all members are known to keep the rules."""
    path = paths[0]
    if len(paths) > 1:
        names = " ".join(shlex.quote(str(each)) for each in paths)
        whole = shlex.quote(str(path.with_name("Dataset.zip")))
        raise UserError(
            f"{path}: a zip must be one file, but this is in parts; cat {names} > {whole}"
        )
    try:
        with StrangersZip(path, MAX_MEMBERS, AGAIN) as archive:
            members = _zip_corpus(archive, path)
            total = sum(member.file_size for member in members)
            with tqdm(
                total=total, desc="unpacking", unit="B", unit_scale=True, disable=None
            ) as bar:
                for member in members:
                    target = folder / Path(member.filename).name
                    with archive.open(member) as source, target.open("xb") as file:
                        shutil.copyfileobj(source, file, CHUNK)
                    bar.update(member.file_size)
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        NotImplementedError,
        ValueError,
    ) as error:
        raise UserError(
            f"{path}: the zip cannot be read ({str(error)[:200]}); it is cut or damaged: fetch it "
            "again"
        ) from error


def _zip_corpus(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """Return the members of a zip that are a corpus's files, all members checked.

    What else it holds, as Kaggle's sample submission, is left out. Raises UserError for a member
    that breaks a rule, and for a zip without a corpus.
    """
    members = archive.infolist()
    _check_zip_size(members, path)
    for member in members:
        if rule := _zip_fault(member):
            raise _refuse_zip(path, member.filename, rule)
    found = [CORPUS_FILE.fullmatch(member.filename) for member in members]
    folders = sorted({each[1] for each in found if each and each[2] == "metadata.json"})
    if len(folders) != 1:
        raise UserError(_no_corpus(path, folders, [member.filename for member in members]))
    names = _Names(folders[0])
    corpus = [member for member in members if names.is_corpus_file(member.filename)]
    for member in corpus:
        if rule := names.fault(member.filename, False, member.file_size):
            raise _refuse_zip(path, member.filename, rule)
    if missing := names.missing():
        raise _refuse_zip(path, missing, "must be there, but is missing")
    return corpus


def _check_zip_size(members: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Raise UserError for a zip that would fill the disk."""
    size = sum(member.file_size for member in members)
    limits = (
        (size > MAX_BYTES, f"unpack to at most {MAX_BYTES:,} bytes, but has {size:,}"),
        (
            size > FREE_BYTES + MAX_RATIO * path.stat().st_size,
            f"unpack to at most {MAX_RATIO} times its size, but has {size:,} bytes",
        ),
    )
    for broken, rule in limits:
        if broken:
            raise UserError(f"{path}: the archive must {rule}; {AGAIN}")


def _zip_fault(member: zipfile.ZipInfo) -> str:
    """Return the rule that any member of a zip must keep and this one does not, or nothing."""
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"must be a regular file or a folder, but is of mode {mode:o}"
    if not PLAIN_PATH.fullmatch(member.filename) or member.filename != member.orig_filename:
        return "must have a path that stays in its folder, with / between names, but has not"
    if member.header_offset < 0:
        return "must lie in the archive, but does not"
    if member.flag_bits & 0x1:
        return "must not be encrypted, but is"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"must be stored or deflated, but is packed by method {member.compress_type}"
    return ""


def _refuse_zip(path: Path, name: str, rule: str) -> UserError:
    return UserError(f"{path}: the archive's member {repr(name)[:80]} {rule}; {AGAIN}")


def _no_corpus(path: Path, folders: Sequence[str], names: Sequence[str]) -> str:
    """Return what a zip without a corpus is, or with several, and what to do."""
    if folders:
        advice = "unpack it with unzip and run python -m speaker check on the one you want"
        return f"{path}: a zip must hold one corpus, but holds {len(folders)}; {advice}"
    if any(PART_OR_TAR.fullmatch(name) for name in names):
        target = shlex.quote(str(path.with_suffix("")))
        advice = f"unzip {shlex.quote(str(path))} -d {target} and give --parts {target}"
        return f"{path}: the zip holds an archive, not its files; {advice}"
    rule = f"a zip must hold {', '.join(MANIFESTS)} and the feature files"
    return f"{path}: {rule}, but has no metadata.json among its {len(names):,} members; {AGAIN}"
