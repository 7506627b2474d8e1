"""The file that a study travels in: a zip whose every member is listed by its sha256.

What others hand us is data. Nothing is unpacked to where a name in the file says: members are read
by names of our own, and never beyond a limit.
"""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from speaker.common.errors import UserError, first_line
from speaker.common.zips import StrangersZip
from speaker.model.saved_model import CARD, CONFIG, MAX_BYTES, WEIGHTS

SUMS = "SHA256SUMS"  # as the program sha256sum writes them: all other members
STUDIES = "studies.json"
MODEL_FILES = (WEIGHTS, CONFIG, CARD)
MAX_TEXT = 1 << 28  # bytes of a member that is no model's weights
MAX_MEMBERS = 100_000
AT_ONCE = 1 << 20  # bytes
AGAIN = "copy or export it again"
_MODEL = "|".join(map(re.escape, MODEL_FILES))
_NAME = re.compile(rf"{re.escape(STUDIES)}|report\.html|models/[0-9a-f]{{32}}/(?:{_MODEL})")


class Writer:
    """An archive that is being written; it is whole once it is closed."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w")
        self._sums: dict[str, str] = {}

    def add(self, name: str, data: bytes) -> None:
        """Add a text."""
        self._zip.writestr(name, data, zipfile.ZIP_DEFLATED)
        self._sums[name] = hashlib.sha256(data).hexdigest()

    def add_file(self, name: str, path: Path) -> None:
        """Add a file."""
        digest = hashlib.sha256()
        with path.open("rb") as source, self._zip.open(name, "w", force_zip64=True) as target:
            while part := source.read(AT_ONCE):
                digest.update(part)
                target.write(part)
        self._sums[name] = digest.hexdigest()

    def close(self) -> None:
        """List the members, and end the file."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in self._sums.items())
        self._zip.writestr(SUMS, lines, zipfile.ZIP_DEFLATED)
        self._zip.close()


class Archive:
    """An archive of a stranger, checked from its first byte to its last."""

    def __init__(self, path: Path) -> None:
        """Open and check an archive. Raises UserError for what is none, or is damaged."""
        self._path = path
        try:
            self._zip = StrangersZip(path, MAX_MEMBERS, AGAIN)
            self._check()
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise UserError(
                f"{path} must be a file that python -m experiments export has written, but cannot "
                f"be read as one ({first_line(error)}); {AGAIN}"
            ) from error
        except (ValueError, zlib.error) as error:
            raise self._damaged(first_line(error)) from error

    def text(self, name: str) -> bytes:
        """Return a member that is no model's weights."""
        return b"".join(self._parts(name))

    def models(self) -> set[str]:
        """Return the runs whose models are in the archive."""
        return {name.split("/")[1] for name in self._sums if name.startswith("models/")}

    def copy_model(self, run_id: str, folder: Path) -> None:
        """Copy a run's model into a folder."""
        folder.mkdir(parents=True)
        for name in MODEL_FILES:
            if f"models/{run_id}/{name}" not in self._sums:
                raise self._damaged(f"models/{run_id}/{name} is missing")
            with (folder / name).open("wb") as stream:
                for part in self._parts(f"models/{run_id}/{name}"):
                    stream.write(part)

    def digest(self) -> str:
        """Return what tells this archive from all others, in hex."""
        return hashlib.sha256(self._listing).hexdigest()

    def _check(self) -> None:
        members = self._zip.namelist()
        if len(members) != len(set(members)):
            raise self._damaged("it has two members of one name")
        if SUMS not in members or STUDIES not in members:
            raise UserError(
                f"{self._path} must be a file that python -m experiments export has written, but "
                f"has no {SUMS} or no {STUDIES}; give another"
            )
        self._listing = b"".join(self._read(SUMS))
        self._sums = _parse(self._listing.decode())
        if odd := sorted({*members, *self._sums} - {SUMS} - (set(members) & self._sums.keys())):
            raise self._damaged(f"{odd[0]!r} is listed and missing, or there and not listed")
        if odd := sorted(name for name in self._sums if not _NAME.fullmatch(name)):
            raise self._damaged(f"{odd[0]!r} is no name of such a file's")
        for name, expected in self._sums.items():
            digest = hashlib.sha256()
            for part in self._read(name):
                digest.update(part)
            if digest.hexdigest() != expected:
                raise self._damaged(f"the sha256 of {name} is not the one that is listed")

    def _parts(self, name: str) -> Iterator[bytes]:
        """Read a member that was checked: it may have changed since."""
        digest = hashlib.sha256()
        for part in self._read(name):
            digest.update(part)
            yield part
        if digest.hexdigest() != self._sums[name]:
            raise self._damaged(f"{name} changed while it was read")

    def _read(self, name: str) -> Iterator[bytes]:
        """Read a member, and no more than such a member may have, whatever the file says."""
        most, count = MAX_BYTES if name.endswith(WEIGHTS) else MAX_TEXT, 0
        with self._zip.open(name) as stream:
            while part := stream.read(AT_ONCE):
                count += len(part)
                if count > most:
                    raise self._damaged(f"{name} has more than {most:,} bytes")
                yield part

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self._path} must be as it was exported, but {reason}; {AGAIN}")


def _parse(listing: str) -> dict[str, str]:
    """Return the sums of a listing. Raises ValueError for what is none."""
    sums: dict[str, str] = {}
    for line in listing.splitlines():
        digest, _, name = line.partition("  ")
        if not re.fullmatch("[0-9a-f]{64}", digest) or name in sums:
            raise ValueError(f"a line of {SUMS} is {line[:80]!r}")
        sums[name] = digest
    return sums
