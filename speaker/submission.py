"""What a prediction leaves: the homework's CSV, checked; class probabilities; and a note of what made them."""

import codecs
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from speaker.cli import printable
from speaker.corpus import TEST_LABELS, Corpus
from speaker.errors import UserError
from speaker.files import HEAD, read_bounded, real_path, recognize, what_is_at, write_atomically

HEADER = ["Id", "Category"]
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
DELIMITERS = ",;\t"  # the first by default; a spreadsheet writes what its country's settings say
MOST_CSV_BYTES = 256 << 20


def check_out(path: Path, flag: str = "--out", corpus: Path | None = None) -> None:
    """Raise UserError unless a file can be made at `path`, or one replaced that is no device and not of a corpus."""
    if not path.name or path.is_dir() or not path.parent.is_dir():
        raise UserError(
            f"{flag} must be a file in a folder that is there, but got {str(path)!r}; make the folder first"
        )
    if path.is_symlink() or (path.exists() and not path.is_file()):
        what = "is a link" if path.is_symlink() and path.exists() else what_is_at(path)
        raise UserError(f"{flag} must be a new or a regular file, but {path} {what}; choose another")
    if corpus and real_path(path.parent) == real_path(corpus):
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

    It may come from a spreadsheet: with a byte order mark, other line ends, `;` between columns.
    Raises UserError unless it has the homework's header, the ids of testdata.json in its order, and known speakers.
    """
    return _parse(read_bounded(path, MOST_CSV_BYTES), path, corpus)


def read_labels(corpus: Corpus) -> list[str] | None:
    """Return the test utterances' speakers where the corpus knows them; None for the homework's, which does not."""
    path = corpus.folder / TEST_LABELS
    return read_csv(path, corpus) if path.exists() or path.is_symlink() else None


def read_labels_if_right(corpus: Corpus) -> list[str] | None:
    """Return what `read_labels` does, or None where the labels are wrong, and say so on stderr.

    A prediction is made without them; only its accuracy needs them.
    """
    try:
        return read_labels(corpus)
    except UserError as error:
        text = f"warning: {error}; predicting without the accuracy that these labels would give"
        print(printable(text), file=sys.stderr)
        return None


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
    rows = _rows(data, path)
    if rows[:1] != [HEADER] or any(len(row) != 2 for row in rows):
        odd = next((row for row in rows if len(row) != 2), rows[0] if rows else [])
        shown = ",".join(odd)[:80]
        rule = f"{path} must have the header {','.join(HEADER)} and two columns"
        raise UserError(f"{rule}, but has the line {shown!r}; fix that")
    names = [utterance.feature_path for utterance in corpus.test]
    if [row[0] for row in rows[1:]] != names:
        rule = f"{path} must list the {len(names):,} utterances of testdata.json in order"
        raise UserError(f"{rule}, but does not{_first_difference(rows[1:], names)}; fix that")
    if unknown := {row[1] for row in rows[1:]} - set(corpus.speakers):
        rule = f"{path} must name speakers of the corpus"
        raise UserError(f"{rule}, but names {min(unknown)[:80]!r}; write them as mapping.json does")
    return [row[1] for row in rows[1:]]


def _rows(data: bytes, path: Path) -> list[list[str]]:
    """Return the rows of a CSV, without empty ones."""
    try:
        text = data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
        first = text[: len(HEADER[0]) + 1]
        delimiter = first[-1] if first[:-1] == HEADER[0] and first[-1] in DELIMITERS else ","
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [row for row in rows if row]
    except (UnicodeDecodeError, csv.Error) as error:
        reason, advice = str(error), "save it as CSV in UTF-8"
        if found := recognize(data[:HEAD]):
            reason, advice = f"it is {found[0]}", found[1]
        raise UserError(f"{path} must be a CSV in UTF-8, but is not ({reason}); {advice}") from error


def _first_difference(rows: list[list[str]], names: list[str]) -> str:
    """Return in words where a CSV's ids first differ from those of testdata.json."""
    for number, (row, name) in enumerate(zip(rows, names, strict=False), 2):
        if row[0] != name:
            return f": line {number} has {row[0][:80]!r} where {name!r} should be"
    return f": it has {len(rows):,}"
