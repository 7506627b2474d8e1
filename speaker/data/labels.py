"""The homework's CSV of speakers, `Id,Category`: what a prediction is written as, and what test labels are read from."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from speaker.common.errors import UserError
from speaker.common.files import read_bounded
from speaker.common.paths import write_output
from speaker.data.corpus import TEST_LABELS, Corpus

HEADER = ["Id", "Category"]
MOST_CSV_BYTES = 256 << 20


def write_csv(path: Path, corpus: Corpus, speakers: Sequence[str]) -> None:
    """Write `Id,Category` and a line for each test utterance: checked as `read_csv` does, and whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows((utterance.feature_path, name) for utterance, name in zip(corpus.test, speakers, strict=True))
    data = text.getvalue().encode()
    _parse(data, path, corpus)
    write_output(path, data)


def read_csv(path: Path, corpus: Corpus) -> list[str]:
    """Return the speakers that a CSV names for the test utterances.

    Raises UserError unless it has the homework's header, the ids of testdata.json in its order, and known speakers.
    """
    return _parse(read_bounded(path, MOST_CSV_BYTES), path, corpus)


def read_labels(corpus: Corpus) -> list[str] | None:
    """Return the test utterances' speakers where the corpus knows them; None for the homework's, which does not."""
    path = corpus.folder / TEST_LABELS
    return read_csv(path, corpus) if path.exists() or path.is_symlink() else None


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
