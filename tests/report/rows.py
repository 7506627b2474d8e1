"""Rows of invented studies, for tests of what a page says."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from experiments.analysis.leaderboard import Row
from experiments.proposals.curves import Estimate

POINT = {"d_model": 80, "nhead": 2, "num_layers": 1, "activation": "sigmoid", "steps": 1_000}


def trial(number: int, whole: float | None = 0.5, count: int = 100, **changes: Any) -> Row:
    """Return a complete trial that has the first utterances right, or one that differs."""
    values = {**POINT, **changes.pop("values", {})}
    right = 0 if whole is None else round(whole * count)
    row = Row(
        run_id=f"run{number}",
        trial=str(number),
        point=f"d{values['d_model']} h{values['nhead']} L{values['num_layers']} "
        f"{values['activation']}",
        state="complete",
        preset="",
        replicate="",
        whole=whole,
        crops=whole,
        parameters=1_000 * (number + 1),
        seconds=10.0 * (number + 1),
        values=values,
        curve=((0.5, 0.4), (1.0, whole)) if whole is not None else (),
        hits=(True,) * right + (False,) * (count - right),
        expected=None if whole is None else Estimate(whole - 0.02, 0.01),
    )
    return replace(row, **changes)


def ended(number: int, state: str, whole: float | None = None, **changes: Any) -> Row:
    """Return a trial that is not complete."""
    fields = {"state": state, "hits": (), "expected": None, "reason": f"why {number}", **changes}
    return trial(number, whole, **fields)


def mixed() -> list[Row]:
    """Return a study as `ranked` orders it: the winner, a tie, a worse one, the homework's first
    point, and one of each other end.
    """
    return [
        trial(3, 0.8, values={"d_model": 256, "activation": "relu"}, is_tied=True),
        trial(2, 0.78, values={"d_model": 128, "activation": "relu"}, is_tied=True),
        trial(4, 0.6, values={"d_model": 256, "activation": "gelu"}),
        trial(0, 0.5, preset="homework-baseline"),
        ended(1, "pruned", 0.45),
        ended(5, "collapsed", 0.1, values={"d_model": 512}),
        ended(6, "infeasible"),
        ended(7, "failed"),
    ]


def numbers(rows: Sequence[Row]) -> list[str]:
    """Return the trials' numbers."""
    return [row.trial for row in rows]
