import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from speaker.common.errors import UserError
from speaker.common.records import parse_record


@dataclass(frozen=True)
class Inner:
    name: str
    rate: int = 0


@dataclass(frozen=True)
class Outer:
    count: int
    names: tuple[str, ...]
    inner: Inner
    total: float | None = None


WHOLE = Outer(3, ("a", "b"), Inner("x", 16_000), 0.5)


def test_what_was_written_is_read() -> None:
    assert parse_record(Outer, json.dumps(asdict(WHOLE)).encode(), Path("f"), "run again") == WHOLE


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda record: record.pop("count"), "count is wrong"),
        (lambda record: record.update(count="3"), "count is wrong"),
        (lambda record: record.update(count=True), "count is wrong"),
        (lambda record: record.update(count=3.0), "count is wrong"),
        (lambda record: record.update(names="ab"), "names is wrong"),
        (lambda record: record.update(names=["a", 1]), r"names\.1 is wrong"),
        (lambda record: record["inner"].update(rate=None), r"inner\.rate is wrong"),
        (lambda record: record.update(inner=[]), "inner is wrong"),
    ],
)
def test_a_field_of_another_type_is_named(
    spoil: Callable[[dict[str, Any]], object], words: str
) -> None:
    record = json.loads(json.dumps(asdict(WHOLE)))
    spoil(record)
    with pytest.raises(UserError, match=f"^f: every field .*{words}.*; run again$"):
        parse_record(Outer, json.dumps(record).encode(), Path("f"), "run again")


def test_a_number_that_overflows_is_refused() -> None:
    text = json.dumps(asdict(WHOLE)).replace("16000", "1e999")
    with pytest.raises(UserError, match="f must be JSON, but is not .1e999 is too large"):
        parse_record(Outer, text.encode(), Path("f"), "run again")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"a"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="it is wrong"):
        parse_record(Outer, text.encode(), Path("f"), "run again")
