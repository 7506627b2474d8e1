"""The leaderboard: as a table for a terminal, and as records for programs."""

from collections.abc import Sequence
from typing import Any

from experiments.analysis.intervals import bounded, expected_bounds, half_width, measured_bounds
from experiments.analysis.leaderboard import Row, ranks, seeds_of
from experiments.analysis.text_table import Column, text_lines
from experiments.tracking import names
from speaker.training.metrics import format_accuracy

WIDTH = 79  # of a line, where nothing else is asked for
INDENT = 6  # of a line below a trial's

Record = dict[str, Any]
Numbered = tuple[int | None, int, Row]  # rank, number of seeds, trial


def shown(rows: Sequence[Row], best: int) -> list[Numbered]:
    """Return the best of ordered trials and all of the homework's points, with the rank of each and
    the number of seeds that its point was trained on.
    """
    return [
        (rank, seeds, row)
        for place, (rank, seeds, row) in enumerate(
            zip(ranks(rows), seeds_of(rows), rows, strict=True), start=1
        )
        if place <= best or row.preset
    ]


def table(rows: list[Row], best: int, width: int = WIDTH) -> str:
    """Return the best rows and the homework's points as text, with the rank of each.

    Of what does not fit into the width the less needed columns are left out. What else is to be
    said of a trial, such as its preset, stands below it.
    """
    chosen = shown(rows, best)
    head, *lines = text_lines(_columns(chosen), width)
    text = [head]
    for line, (_, seeds, row) in zip(lines, chosen, strict=True):
        note = _note(row, seeds)
        text += [line, f"{'':<{INDENT}}{note}"] if note else [line]
    return "\n".join(text)


def _columns(chosen: Sequence[Numbered]) -> list[Column]:
    rows = [row for _, _, row in chosen]
    ends = [
        format_accuracy(row.expected.mean if row.expected else None)
        if row.state == "complete"
        else row.state
        for row in rows
    ]
    return [
        Column("rank", [str(rank or "-") for rank, _, _ in chosen]),
        Column("trial", [f"#{row.trial}" for row in rows]),
        Column("point", [row.point for row in rows], is_words=True),
        Column("expected", ends),
        Column("whole", [format_accuracy(row.whole) for row in rows]),
        Column("90 %", [_half(row.whole, row) for row in rows], dispensable=3),
        Column("crops", [format_accuracy(row.crops) for row in rows]),
        Column("90 %", [_half(row.crops, row) for row in rows], dispensable=4),
        Column("parameters", [f"{row.parameters:,}" for row in rows], dispensable=1),
        Column("seconds", [f"{row.seconds:.1f}" for row in rows], dispensable=2),
        Column("utterances/s", [_speed(row) for row in rows], dispensable=5),
    ]


def _half(value: float | None, row: Row) -> str:
    return half_width(measured_bounds(value, len(row.hits)))


def _speed(row: Row) -> str:
    return "-" if row.rate is None else f"{row.rate:,.0f}"


def _note(row: Row, seeds: int) -> str:
    rescue = f"rescue of #{row.rescue_of}" if row.rescue_of else ""
    repeat = f"one of {seeds} seeds of this point" if seeds > 1 else ""
    return "; ".join(word for word in (row.preset, repeat, rescue) if word)


def records(chosen: Sequence[Numbered]) -> list[Record]:
    """Return trials with all that is known of them, by names that stay, in full precision."""
    return [_record(*each) for each in chosen]


def _record(rank: int | None, seeds: int, row: Row) -> Record:
    tags, count = row.tags, len(row.hits)
    expected = row.expected.mean if row.expected else None
    return {
        "study": tags.get(names.STUDY),
        "rank": rank,
        "trial": int(row.trial),
        "run_id": row.run_id,
        "state": row.state,
        "reason": row.reason,
        "preset": row.preset,
        "replicate": int(row.replicate) if row.replicate else None,
        "rescue_of": int(row.rescue_of) if row.rescue_of else None,
        "seeds": seeds,
        "point": row.point,
        **bounded("expected", expected, expected_bounds(row.expected)),
        **bounded("accuracy_whole", row.whole, measured_bounds(row.whole, count)),
        **bounded("accuracy_crops", row.crops, measured_bounds(row.crops, count)),
        "utterances": count or None,
        "parameters": row.parameters,
        "seconds": row.seconds,
        "utterances_per_second": row.rate,
        "corpus": tags.get("corpus"),
        "corpus_digest": tags.get("corpus.digest"),
        "protocol_whole": tags.get("protocol.whole"),
        "protocol_crops": tags.get("protocol.crops"),
        **row.values,
    }
