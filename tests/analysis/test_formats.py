import csv
import io
import json
import math

import pytest

from experiments.analysis.formats import FORMATS, formatted
from experiments.analysis.paired import Paired, compare_hits
from experiments.analysis.text_table import Column, text_lines

RECORDS = [
    {"name": 'a "b", c\nd|e', "value": 0.1 + 0.2, "count": None},
    {"name": "", "value": math.nan, "late": True},
]


def test_records_come_back_from_csv_and_json_as_they_were() -> None:
    assert json.loads(formatted(RECORDS, "json")) == [
        {"name": 'a "b", c\nd|e', "value": 0.1 + 0.2, "count": None, "late": None},
        {"name": "", "value": None, "count": None, "late": True},
    ]
    rows = list(csv.DictReader(io.StringIO(formatted(RECORDS, "csv"))))
    assert rows == [
        {"name": 'a "b", c\nd|e', "value": str(0.1 + 0.2), "count": "", "late": ""},
        {"name": "", "value": "", "count": "", "late": "True"},
    ]


def test_markdown_is_a_table_whatever_a_cell_holds() -> None:
    lines = formatted(RECORDS, "markdown").splitlines()
    assert lines[:2] == ["| name | value | count | late |", "| --- | --- | --- | --- |"]
    assert lines[2] == '| a "b", c d\\|e | 0.3 |  |  |'
    assert len(lines) == 4


@pytest.mark.parametrize("kind", FORMATS)
def test_no_records_are_an_empty_table(kind: str) -> None:
    assert formatted([], kind) == {"csv": "", "json": "[]"}.get(kind, "|  |\n|  |")


@pytest.mark.parametrize(
    ("width", "titles"),
    [(80, ["a", "wide", "odd"]), (12, ["a", "wide", "odd"]), (11, ["a", "odd"]), (1, ["a"])],
)
def test_the_least_needed_column_goes_first(width: int, titles: list[str]) -> None:
    columns = [
        Column("a", ["b"], is_words=True),
        Column("wide", ["123456"], dispensable=2),
        Column("odd", ["1"], dispensable=1),
    ]
    assert text_lines(columns, width)[0].split() == titles


@pytest.mark.parametrize(
    ("one", "other", "found", "pvalue"),
    [
        ((), (), None, None),
        ((True,), (True, False), None, None),
        ((True, False), (True, False), Paired(2, 0, 0), 1.0),
        ((True,) * 3, (False,) * 3, Paired(3, 3, 0), 0.25),
        ((True, False), (False, True), Paired(2, 1, 1), 1.0),
        ((False,) * 6 + (True,), (True,) * 7, Paired(7, 0, 6), 0.03125),
    ],
)
def test_mcnemars_exact_test(
    one: tuple[bool, ...], other: tuple[bool, ...], found: Paired | None, pvalue: float | None
) -> None:
    assert compare_hits(one, other) == found
    assert (found and found.pvalue) == pvalue
