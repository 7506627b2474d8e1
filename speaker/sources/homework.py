"""The homework's corpus from the parts of its archive: fetched, or found in a folder,
and unpacked into place.

Parts that are fetched lie beside the corpus `out` in the folder `.out.parts` until it is in place.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from speaker.common.errors import UserError
from speaker.common.files import create_once, real_path, what_is_at
from speaker.data.corpus import MANIFESTS, read_corpus
from speaker.sources.archive import unpack
from speaker.sources.http import PAUSES, fetch_all
from speaker.sources.parts import Part


def unpack_parts(paths: Sequence[Path], out: Path) -> bool:
    """Make the corpus `out` from the parts of its archive, unless it is there;
    return whether it was made now.

    The parts are only read. Raises UserError, and leaves nothing, if `out` is something else, the
    archive cannot be unpacked, or it holds no whole corpus.
    """
    return _make(real_path(out), lambda partial: _unpack_whole(paths, partial))


def download(
    parts: Sequence[Part], out: Path, timeout: float = 30.0, pauses: Sequence[float] = PAUSES
) -> bool:
    """Fetch the parts of an archive and make the corpus `out` from them, unless it is there;
    return whether it was now.

    What has arrived is kept until the corpus is in place, and a later call resumes from it.
    `timeout` is in seconds, after which a server has stalled; `pauses` follow on attempts in a row
    that brought no new byte. Raises UserError if `out` is something else, or a part cannot be had
    or is not what was promised.
    """
    out = real_path(out)
    folder = out.with_name(f".{out.name}.parts")

    def create(partial: Path) -> None:
        folder.mkdir(exist_ok=True)
        fetch_all(parts, folder, timeout, pauses)
        try:
            _unpack_whole([folder / part.name for part in parts], partial)
        except UserError as error:
            raise UserError(f"{error}; to fetch all of it anew, delete {folder}") from error

    made = _make(out, create)
    shutil.rmtree(folder, ignore_errors=True)
    return made


def _make(out: Path, create: Callable[[Path], None]) -> bool:
    """Make a corpus with `create(partial)`, in one process at a time, unless it is there."""
    if out.exists():
        if all((out / name).is_file() for name in MANIFESTS):
            return False
        raise UserError(
            f"{out} must not be there yet, or be a corpus, but it is something else; give another "
            "--out"
        )
    if out.is_symlink():
        raise UserError(f"--out must be a new folder, but {out} {what_is_at(out)}; give another")
    made = []

    def create_and_note(partial: Path) -> None:
        create(partial)
        made.append(partial)

    create_once(out, create_and_note)
    return bool(made)


def _unpack_whole(paths: Sequence[Path], folder: Path) -> None:
    """Unpack a corpus, and make sure that its manifests can be read and that all files
    that they list are there.
    """
    unpack(paths, folder)
    archive = f"the archive {paths[0]}{' and its other parts' if len(paths) > 1 else ''}"
    try:
        corpus = read_corpus(folder)
    except UserError as error:
        raise UserError(f"{archive} holds no corpus: {error}") from error
    there = {path.name for path in folder.iterdir()}
    listed = (utterance.feature_path for utterance in (*corpus.utterances, *corpus.test))
    if missing := [name for name in listed if name not in there]:
        raise UserError(
            f"{archive} must hold all files that its manifests list, but {len(missing):,} are "
            f"missing, the first {missing[0]!r}; get it from another source"
        )
