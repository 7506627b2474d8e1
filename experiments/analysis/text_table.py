"""Tables as text: for a terminal, and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from speaker.common.cli import printable

GAP = 1  # blanks between two columns


@dataclass(frozen=True)
class Column:
    """A column: its title, its cells, and whether it is one of words, which begin at its left."""

    title: str
    cells: Sequence[str]
    is_words: bool = False
    dispensable: int = 0  # how early it is left out where lines are too long; 0 for never

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The title and the cells, each in one line: names in them may come from strangers."""
        return tuple(map(printable, (self.title, *self.cells)))

    @property
    def width(self) -> int:
        """The characters of its longest cell."""
        return max(map(len, self.shown))

    def line(self, number: int) -> str:
        """Return a cell in the column's width, the title as number 0."""
        cell = self.shown[number]
        return f"{cell:<{self.width}}" if self.is_words else f"{cell:>{self.width}}"


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns of a table whose lines have this width, as far as they can."""
    kept = list(columns)
    while sum(column.width + GAP for column in kept) - GAP > width:
        last = max(kept, key=lambda column: column.dispensable)
        if not last.dispensable:
            break
        kept.remove(last)
    return kept


def text_lines(columns: Sequence[Column], width: int) -> list[str]:
    """Return a table as lines, the titles first, without the columns that do not fit."""
    kept = fitting(columns, width)
    count = len(columns[0].cells) if columns else 0
    return [
        (" " * GAP).join(column.line(number) for column in kept).rstrip()
        for number in range(count + 1)
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return printable(" ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split()))
