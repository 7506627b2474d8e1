"""Records for other programs: CSV, JSON and Markdown."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from experiments.analysis.text_table import markdown

Record = dict[str, Any]
FORMATS = ("csv", "json", "markdown")


def formatted(records: Sequence[Record], kind: str) -> str:
    """Return records in one of FORMATS; all fields that any of them has, in the same order. What is
    not known is null in JSON, and empty elsewhere.
    """
    names = list(dict.fromkeys(name for record in records for name in record))
    rows = [[_finite(record.get(name)) for name in names] for record in records]
    if kind == "json":
        objects = [dict(zip(names, row, strict=True)) for row in rows]
        return json.dumps(objects, indent=1, allow_nan=False, ensure_ascii=False)
    if kind == "markdown":
        return markdown(names, [[_short(value) for value in row] for row in rows])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    return text.getvalue().rstrip("\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1_000 else f"{value:.0f}"
    return str(value)
