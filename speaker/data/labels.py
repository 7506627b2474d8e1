"""The homework's CSV of speakers, `Id,Category`: what a prediction is written as,
and what test labels are read from.
"""

import codecs
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from speaker.common.cli import printable
from speaker.common.errors import UserError
from speaker.common.files import HEAD, read_bounded, recognize
from speaker.common.paths import write_output
from speaker.data.corpus import TEST_LABELS, Corpus

HEADER = ["Id", "Category"]
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
DELIMITERS = ",;\t"  # the first by default; a spreadsheet writes what its country's settings say
MAX_CSV_BYTES = 256 << 20


def write_csv(path: Path, corpus: Corpus, speakers: Sequence[str]) -> None:
    """Write `Id,Category` and a line for each test utterance: checked as `read_csv` does,
    and whole or not at all.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(
        (utterance.feature_path, name)
        for utterance, name in zip(corpus.test, speakers, strict=True)
    )
    data = text.getvalue().encode()
    _parse(data, path, corpus)
    write_output(path, data)


def read_csv(path: Path, corpus: Corpus) -> list[str]:
    """Return the speakers that a CSV names for the test utterances.

    It may come from a spreadsheet: with a byte order mark, other line ends, `;` between columns.
    Raises UserError unless it has the homework's header, the ids of testdata.json in its order, and
    known speakers.
    """
    return _parse(read_bounded(path, MAX_CSV_BYTES), path, corpus)


def read_labels(corpus: Corpus) -> list[str] | None:
    """Return the test utterances' speakers where the corpus knows them; None for the homework's,
    which does not.
    """
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
        raise UserError(
            f"{path} must be a CSV in UTF-8, but is not ({reason}); {advice}"
        ) from error


def _first_difference(rows: list[list[str]], names: list[str]) -> str:
    """Return in words where a CSV's ids first differ from those of testdata.json."""
    for number, (row, name) in enumerate(zip(rows, names, strict=False), 2):
        if row[0] != name:
            return f": line {number} has {row[0][:80]!r} where {name!r} should be"
    return f": it has {len(rows):,}"
