"""Zips of strangers, whose list of members is counted before `zipfile` makes an object of each."""

import zipfile
from pathlib import Path
from typing import BinaryIO

from speaker.common.errors import UserError
from speaker.common.files import open_regular

MEMBER = b"PK\x01\x02"  # how each member is listed
MAX_LIST_BYTES = 24 << 20  # the homework's list would have 9 MB


class StrangersZip(zipfile.ZipFile):
    """A zip that is refused by its list, if that is long: UserError, which ends with `again`."""

    _source: BinaryIO | None = None

    def __init__(self, path: Path, most: int, again: str) -> None:
        """Open the zip at a path, which must have fewer than `most` members."""
        self._source = open_regular(path)
        super().__init__(_Counted(self._source, path, most, again))

    def close(self) -> None:
        """Close the zip and its file; Python calls this for one that could not be opened, too."""
        super().close()
        if self._source:
            self._source.close()


class _Counted:
    """A file that is read in pieces, none of which lists too many members of a zip."""

    def __init__(self, stream: BinaryIO, path: Path, most: int, again: str) -> None:
        self._stream, self._path, self._most, self._again = stream, path, most, again
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes, or all that follow."""
        data = self._stream.read(MAX_LIST_BYTES + 1 if size < 0 else min(size, MAX_LIST_BYTES + 1))
        if len(data) > MAX_LIST_BYTES:
            rule = f"list its members in at most {MAX_LIST_BYTES:,} bytes, but this list is longer"
            raise UserError(f"{self._path}: a zip must {rule}; {self._again}")
        if (count := data.count(MEMBER)) >= self._most:
            rule = f"have fewer than {self._most:,} members, but has {count:,}"
            raise UserError(f"{self._path}: a zip must {rule}; {self._again}")
        return data
