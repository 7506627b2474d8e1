"""What was found, and the table that says so."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.analysis.text_table import GAP
from speaker.common.cli import printable

NOTHING = "Nothing is missing, doubled, stranded, damaged or left over."
HEAD = ("what", "where", "fault", "mended how")
NARROWEST = 22  # characters of a column of sentences


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, or, where it `is_fault` not, only to be known.

    `mend` puts it right without losing anything; once more does no harm.
    """

    kind: str
    where: str
    words: str
    remedy: str
    mend: Callable[[], object] | None = None
    is_fault: bool = True
    study: str = ""  # which must not be at work while it is mended


def note(kind: str, where: str, words: str, remedy: str = "nothing to do") -> Finding:
    """Return what is only to be known."""
    return Finding(kind, where, words, remedy, is_fault=False)


def describe(mended: Sequence[Finding], left: Sequence[Finding], width: int) -> str:
    """Return what was put right and what is left as one table, whose lines have this width as far
    as they can, with a line that counts.
    """
    found = [
        *((each.kind, each.where, each.words, f"mended: {each.remedy}") for each in mended),
        *((each.kind, each.where, each.words, _remedy(each)) for each in left),
    ]
    cells = [[*map(printable, row)] for row in found]
    faults = sum(each.is_fault for each in left)
    counts = [f"{len(mended)} mended"] * bool(mended) + [
        f"{faults} fault{'s' * (faults != 1)} left"
    ]
    end = NOTHING if not mended and not faults else f"{', '.join(counts)}."
    if any(each.mend and each.is_fault for each in left):
        end += " --mend puts right what says so."
    return "\n".join([*(_table(cells, width) if cells else []), end])


def _table(cells: Sequence[Sequence[str]], width: int) -> list[str]:
    rows = [HEAD, *cells]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    rest = width - first - second - 3 * GAP
    sizes = (first, second, max(rest // 2, NARROWEST), max(rest - rest // 2, NARROWEST))
    return [line for row in rows for line in _wrapped(row, sizes)]


def _remedy(finding: Finding) -> str:
    """Return how something is put right, or what else is to be said."""
    return f"--mend {finding.remedy}" if finding.mend else finding.remedy


def _wrapped(row: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Return the lines of a row, each cell wrapped to the size of its column."""
    cells = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, sizes, strict=True)]
    return [
        (" " * GAP)
        .join(
            f"{cell[number] if number < len(cell) else '':<{size}}"
            for cell, size in zip(cells, sizes, strict=True)
        )
        .rstrip()
        for number in range(max(map(len, cells)))
    ]
