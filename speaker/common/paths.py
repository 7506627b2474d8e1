"""Where things lie: the state folder, and files that a user asked for."""

from pathlib import Path

from speaker.common.errors import UserError
from speaker.common.files import real_path, what_is_at, write_atomically

STATE = Path("mlruns")  # all that the program keeps, below the folder that it is started in


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
