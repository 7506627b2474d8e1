"""Where things lie: the state folder, and files that a user asked for."""

import os
import shlex
from pathlib import Path

from speaker.common.errors import UserError
from speaker.common.files import real_path, what_is_at, write_atomically

STATE = Path("mlruns")  # all that the program keeps, below the folder that it is started in
PROGRAM = Path(__file__).resolve().parents[2]  # the folder of the program itself


def next_commands(*commands: str) -> str:
    """Return what to type next, a line each: words after `python -m`, fit for a shell.

    A program that was started from another folder is told first where its modules are.
    """
    known = os.environ.get("PYTHONPATH", "")
    found = {real_path(Path(each)) for each in (".", *known.split(os.pathsep)) if each}
    place = shlex.quote(str(PROGRAM)) + f"{os.pathsep}$PYTHONPATH" * bool(known)
    lines = [f"export PYTHONPATH={place}"] * (PROGRAM not in found)
    return "\n".join(f"  {line}" for line in (*lines, *(f"python -m {each}" for each in commands)))


def validate_output_path(
    path: Path, flag: str = "--out", corpus: Path | None = None, begins: bytes = b""
) -> None:
    """Raise UserError unless a file can be made at `path`, or one replaced that is no device and
    not of a corpus.

    `begins` is how such files begin: one that begins otherwise is somebody's, and is kept.
    """
    if not path.name or path.is_dir() or not path.parent.is_dir():
        raise UserError(
            f"{flag} must be a file in a folder that is there, but got {str(path)!r}; make the "
            "folder first"
        )
    if path.is_symlink() or (path.exists() and not path.is_file()):
        what = "is a link" if path.is_symlink() and path.exists() else what_is_at(path)
        raise UserError(
            f"{flag} must be a new or a regular file, but {path} {what}; choose another"
        )
    if path.is_file():
        with path.open("rb") as stream:
            head = stream.read(len(begins))
        if head and head != begins:
            raise UserError(
                f"{flag} must be a new file or an earlier one of its kind, but {path} holds "
                "something else; choose another, or remove it"
            )
    if corpus and real_path(path.parent) == real_path(corpus):
        raise UserError(
            f"{flag} must lie outside the corpus, but {path} lies in it; choose another"
        )


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a user asked for, whole or not at all.

    Raises UserError where that cannot be done.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UserError(
            f"--out must be a file that can be written, but {path} cannot be ({error.strerror})"
        ) from error
