"""What a prediction leaves: the homework's CSV, checked; class probabilities; and a note of what made them."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from speaker.common.errors import UserError
from speaker.common.files import read_bounded, write_atomically
from speaker.data.corpus import TEST_LABELS, Corpus

HEADER = ["Id", "Category"]
MOST_CSV_BYTES = 256 << 20


def check_out(path: Path, flag: str = "--out", corpus: Path | None = None) -> None:
    """Raise UserError unless a file can be made at `path`, or one replaced that is no device and not of a corpus."""
    if not path.name or path.is_dir() or not path.parent.is_dir():
        raise UserError(
            f"{flag} must be a file in a folder that is there, but got {str(path)!r}; make the folder first"
        )
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{flag} must be a new or a regular file, but {path} is none; choose another")
    if corpus and path.parent.resolve() == corpus.resolve():
        raise UserError(f"{flag} must lie outside the corpus, but {path} lies in it; choose another")


def write_csv(path: Path, corpus: Corpus, speakers: Sequence[str]) -> None:
    """Write `Id,Category` and a line for each test utterance: checked as `read_csv` does, and whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows((utterance.feature_path, name) for utterance, name in zip(corpus.test, speakers, strict=True))
    data = text.getvalue().encode()
    _parse(data, path, corpus)
    _write_out(path, data)


def read_csv(path: Path, corpus: Corpus) -> list[str]:
    """Return the speakers that a CSV names for the test utterances.

    Raises UserError unless it has the homework's header, the ids of testdata.json in its order, and known speakers.
    """
    return _parse(read_bounded(path, MOST_CSV_BYTES), path, corpus)


def read_labels(corpus: Corpus) -> list[str] | None:
    """Return the test utterances' speakers where the corpus knows them; None for the homework's, which does not."""
    path = corpus.folder / TEST_LABELS
    return read_csv(path, corpus) if path.exists() or path.is_symlink() else None


def write_probabilities(path: Path, corpus: Corpus, probabilities: Tensor) -> None:
    """Write class probabilities (test utterances, speakers) in Parquet: `Id`, then a column for each speaker.

    Raises UserError for a speaker who is called `Id`: nothing reads two columns of one name.
    """
    if HEADER[0] in corpus.speakers:
        raise UserError(f"--probabilities needs a column for each speaker beside {HEADER[0]}, but one is called so")
    import pyarrow as pa  # late: only this needs it, and it takes a while
    import pyarrow.parquet as pq

    ids = pa.array([utterance.feature_path for utterance in corpus.test], pa.string())
    columns = [ids, *(pa.array(column.numpy()) for column in probabilities.T.contiguous())]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, names=[HEADER[0], *corpus.speakers]), stream)
    _write_out(path, stream.getvalue())


def write_sidecar(path: Path, content: dict[str, object]) -> None:
    """Write what a prediction was made by, as JSON."""
    _write_out(path, json.dumps(content, indent=1).encode())


def _write_out(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UserError(f"--out must be a file that can be written, but {path} cannot be ({error.strerror})") from error


def _parse(data: bytes, path: Path, corpus: Corpus) -> list[str]:
    try:
        rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} must be a CSV in UTF-8, but is not ({error})") from error
    if rows[:1] != [HEADER] or any(len(row) != 2 for row in rows):
        raise UserError(f"{path} must have the header {','.join(HEADER)} and two columns, but has not")
    if [row[0] for row in rows[1:]] != [utterance.feature_path for utterance in corpus.test]:
        raise UserError(f"{path} must list the {len(corpus.test):,} utterances of testdata.json in order, but does not")
    if unknown := {row[1] for row in rows[1:]} - set(corpus.speakers):
        raise UserError(f"{path} must name speakers of the corpus, but names {min(unknown)[:80]!r}")
    return [row[1] for row in rows[1:]]
