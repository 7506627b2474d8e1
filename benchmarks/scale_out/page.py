"""The page of what was measured, and where the next limit lies."""

from typing import Any

MINUTES = 27  # that a trial of the homework takes
WORKERS = 1_000  # that are to keep busy
CONNECTIONS = 4  # to PostgreSQL that a worker holds: two for locks, two of Optuna's
PATIENCE_S = 600  # to join a study
Row = dict[str, Any]
HEADS = ("storage", "trials", "join", "claim", "study's lock", "best's lock", "open run", "workers")


def write_page(rows: list[Row]) -> str:
    """Return the figures as Markdown, with what follows from them for each storage."""
    lines = [
        "# How far a study scales",
        "",
        f"Medians, of a worker alone. What holds a lock, all others wait for: with trials of "
        f"{MINUTES} minutes, as many workers as the last column says use all of the slower lock. "
        "That is computed: so many were never run, and what an MLflow server bears is not in it.",
        "",
        f"| {' | '.join(HEADS)} |",
        "|" + " --- |" * len(HEADS),
    ]
    lines += [_line(row) for row in rows]
    for storage in dict.fromkeys(row["storage"] for row in rows):
        lines += ["", *_limits(storage, [row for row in rows if row["storage"] == storage])]
    return "\n".join(lines) + "\n"


def busiest(row: Row) -> float:
    """Return the seconds for which each trial holds the lock that is held longest."""
    return float(max(row["study_lock_s"], row["best_lock_s"]))


def workers(row: Row) -> int:
    """Return how many workers use all of that lock."""
    return int(60 * MINUTES / busiest(row))


def reached_at(rows: list[Row], seconds: float, key: str) -> float:
    """Return at how many trials a cost will be so high, were it to grow on along the line through
    the two largest studies; infinity where it does not grow.
    """
    (few, low), (many, high) = ((row["trials"], row[key]) for row in rows[-2:])
    slope = (high - low) / (many - few)
    return many + (seconds - high) / slope if slope > 0 else float("inf")


def _line(row: Row) -> str:
    seconds = ("join_s", "claim_s", "study_lock_s", "best_lock_s", "open_run_s")
    figures = " | ".join(f"{row[name]:.3g} s" for name in seconds)
    return f"| {row['storage']} | {row['trials']:,} | {figures} | {workers(row):,} |"


def _limits(storage: str, rows: list[Row]) -> list[str]:
    lines = [f"## {storage}", ""]
    if len(rows) < 2:
        return [*lines, "One size of study tells nothing of the next."]
    last = rows[-1]
    which = max(("study_lock_s", "best_lock_s"), key=lambda key: float(last[key]))
    share = 60 * MINUTES / WORKERS
    return [
        *lines,
        f"- At {last['trials']:,} trials the {which.removesuffix('_lock_s')}'s lock is the first "
        f"limit: {1 / busiest(last):.1f} trials a second.",
        f"- {WORKERS:,} workers need {1 / share:.2f} trials a second, {share:.2f} s each: that is "
        f"reached at {_count(reached_at(rows, share, which))}.",
        f"- To join takes {PATIENCE_S // 60} minutes at "
        f"{_count(reached_at(rows, PATIENCE_S, 'join_s'))}.",
        *([_connections()] if storage == "PostgreSQL" else []),
    ]


def _connections() -> str:
    return (
        f"- A worker holds {CONNECTIONS} connections: with `max_connections` at 100, if it is not "
        f"raised, {100 // CONNECTIONS} have room; {WORKERS:,} need {CONNECTIONS * WORKERS:,}."
    )


def _count(trials: float) -> str:
    if trials == float("inf"):
        return "no number of trials: it does not grow"
    return f"about {max(0, round(trials, -2)):,.0f} trials"
